"""Judges what code does with a hostile file: its error, and what it opened, imported, started and allocated meanwhile.

For a fork only: an audit hook cannot be taken out again.
"""

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from huggingface_hub.constants import HF_HOME

from shards.errors import MAX_CHARACTERS, AlignDistilError

REPOSITORY = Path(__file__).resolve().parents[3]
SECONDS = 10.0  # for one mutant, which takes about a millisecond
ROOM_BYTES = 512 * 2**20  # for all mutants of a fork
FORBIDDEN = ("pickle.find_class", "exec", "compile", "os.system", "subprocess.Popen", "socket.connect", "os.exec")
FORBIDDEN += ("os.posix_spawn", "os.fork")
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate", "os.chmod")
OUR_OWN = ("shards", "precompute", "student", "stress")


class TooLong(BaseException):
    """A mutant that takes longer than SECONDS. Not an Exception, which libraries catch."""


class Guard:
    """Watches this process. folders: where files may be opened; writes: those where files may be written, too."""

    def __init__(self, folders: list[Path], *, room: int = ROOM_BYTES, modules: tuple[str, ...] = ()) -> None:
        known = [sys.prefix, sys.base_prefix, str(REPOSITORY), "/proc/self", "/sys/", "/dev/null", "/dev/urandom"]
        self._inside = tuple(os.path.realpath(folder) + "/" for folder in folders)
        self._known = (*(os.path.realpath(path) for path in known), "/usr/", "/etc/mime.types", "/dev/shm/", HF_HOME)
        self._modules = frozenset((*sys.stdlib_module_names, *OUR_OWN, *modules, *_loaded()))
        self._watching = False
        self._events: list[str] = []
        signal.signal(signal.SIGALRM, _stop)
        _limit_memory(room)
        pa.OSFile = self._watched(pa.OSFile)
        pa.memory_map = self._watched(pa.memory_map)
        sys.addaudithook(self._audit)

    def judge(self, work: Callable[[], object]) -> str | None:
        """What went wrong, in one line; None if the work ended as it should: with values, or one clear line."""
        self._events.clear()
        found = None
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        self._watching = True
        try:
            work()
        except AlignDistilError as exc:
            found = _of_refusal(exc)
        except TooLong:
            found = f"more than {SECONDS:.0f} s"
        except BaseException as exc:
            found = f"{type(exc).__name__}: {str(exc)[:120]!r} {_place(exc)}"
        finally:
            self._watching = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        return found or (self._events[0] if self._events else None)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._watching:
            return
        if event == "open":
            self._opened(arguments[0], arguments[1], arguments[2])
        elif event == "import":
            if arguments[0].partition(".")[0] not in self._modules:
                self._note(f"imported {arguments[0]}")
        elif event in CHANGES:
            self._opened(arguments[0], None, os.O_WRONLY)
        elif event in FORBIDDEN and not (event in ("exec", "compile") and _is_import()):
            self._note(f"{event} {str(arguments)[:80]}")

    def _opened(self, path: Any, mode: Any, flags: Any) -> None:
        if isinstance(path, int):
            return
        with contextlib.suppress(ValueError, OSError):
            name = os.path.realpath(os.fsdecode(path))
            inside = name.startswith(self._inside) or name + "/" in self._inside
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
            if not inside and (writes or not name.startswith(self._known)):
                self._note(f"opened {name}")

    def _watched(self, opening: Any) -> Any:
        """pyarrow opens files by itself, without an event."""

        def open_(path: Any, *args: Any, **kwargs: Any) -> Any:
            if self._watching:
                self._opened(str(path), None, 0)
            return opening(path, *args, **kwargs)

        return open_

    def _note(self, text: str) -> None:
        self._events.append(text)


def _loaded() -> Iterator[str]:
    return iter({name.partition(".")[0] for name in sys.modules})


def _is_import() -> bool:
    """Whether code is run by an import: `import` events say which one."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        if frame.f_code.co_name in ("__create_fn__", "_create_fn", "namedtuple"):  # a class made by the library
            return True
        frame = frame.f_back
    return False


def _of_refusal(error: AlignDistilError) -> str | None:
    text = str(error)
    if not text.isprintable() or not 0 < len(text) <= MAX_CHARACTERS:
        return f"a message of {len(text)} characters: {text[:120]!r}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return f"asked for more memory than there is {_place(cause)}"
        if isinstance(cause, TooLong):
            return f"more than {SECONDS:.0f} s"
        cause = cause.__cause__ or cause.__context__
    return None


def _place(error: BaseException) -> str:
    """The last lines of our own code that an error went through."""
    places, trace = [], error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if any(f"/{room}/" in code.co_filename for room in OUR_OWN[:3]):
            places.append(f"{Path(code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return " ".join(places[-3:])


def _stop(*_: object) -> None:
    raise TooLong


def _limit_memory(room: int) -> None:
    """What is allocated beyond this room gives a MemoryError, or ends the process."""
    pa.set_memory_pool(pa.system_memory_pool())  # the others reserve addresses ahead
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + room
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
