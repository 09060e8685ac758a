"""How a command ends: exit code 0, or 2 and one line on stderr for an error that the user can fix."""

import argparse
import dataclasses
import errno
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, Literal, NoReturn, get_args, get_origin

from shards.errors import AlignDistilError, OptionError, first_line, root_of

REFUSED_BY_THE_SYSTEM = frozenset({
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
    *(errno.EEXIST, errno.ENOTEMPTY, errno.ESTALE, errno.EBUSY, errno.ENXIO, errno.ENODEV, errno.ENOMEM),
})  # fmt: skip
"""Errors of the operating system about disks and folders, which code cannot fix."""


OUT_OF_MEMORY = "OutOfMemoryError"
"""The names of torch's errors for a full accelerator memory."""
FULL_MEMORY = ("can't allocate memory", "can't start new thread", "std::bad_alloc", "Cannot allocate memory")
"""Parts of the RuntimeErrors of Python and torch when the machine's memory is full."""


class OneLineErrors(argparse.ArgumentParser):
    """A parser that raises OptionError, without the usage that argparse prints, and takes no abbreviated flags."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["allow_abbrev"] = False
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message} (--help lists all flags)")

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        found, unknown = super().parse_known_args(*args, **kwargs)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def parse_dataclasses(
    parser: type, kinds: Any, module: str, description: str | None, arguments: Any
) -> tuple[Any, ...]:
    """The options of `python -m MODULE`: one object of each of `kinds`. Raises OptionError.

    parser: HfArgumentParser of transformers, which is not imported here.
    """
    one_line = type("_Parser", (OneLineErrors, parser), {})
    return one_line(kinds, prog=f"python -m {module}", description=description).parse_args_into_dataclasses(arguments)


def flag(default: Any, text: str) -> Any:
    """A field of an options dataclass: its default and its --help text. A list or dict is copied."""
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata={"help": text})
    return dataclasses.field(default=default, metadata={"help": text})


def require_choices(options: Any) -> None:
    """Raise OptionError if a field of Literal type has an illegal value; argparse checks only the command line."""
    for field in dataclasses.fields(options):
        kinds = (field.type, *get_args(field.type))
        legal = [value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
        value = getattr(options, field.name)
        if legal and value is not None and value not in legal:
            raise OptionError(f"{field.name}: expected one of {', '.join(map(str, legal))}, got {value!r}")


def require_at_least(options: Any, least: int, names: Iterable[str]) -> None:
    """Raise OptionError if one of these fields is below `least`."""
    for name in names:
        if getattr(options, name) < least:
            raise OptionError(f"{name}: expected {least} or more, got {getattr(options, name)}")


def run_command(main: Callable[[], None], *, interrupted: str = "interrupted") -> None:
    """Run a command's main: an AlignDistilError gives one line and exit code 2, any other error a traceback.

    An error of the operating system (full disk, read-only folder, too many open files) and a full memory also give one.

    interrupted: the message after Ctrl-C, with exit code 130.
    """
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reading process, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except AlignDistilError as error:
        root = root_of(error)  # whoever loads a model or data takes any error of a library for one about these
        _refuse(memory_text(root) if is_out_of_memory(root) else str(error))
    except OSError as error:
        # a library's error may have no number, and a folder that was removed is a file that is not there: if they are
        # about a file, our code knew its name
        named = error.filename is not None and error.errno in (None, errno.ENOENT)
        if error.errno not in REFUSED_BY_THE_SYSTEM and not named:
            raise
        files = [str(name) for name in (error.filename, error.filename2) if name is not None]
        where = " -> ".join(files) or "a file"
        _refuse(f"{where}: expected to be able to read and write, got {error.strerror or first_line(error)}")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _refuse(memory_text(error))


def memory_text(error: BaseException) -> str:
    return f"memory: expected enough of it for this command, got {first_line(error)}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or of a library says that the memory is full, or that of an accelerator."""
    full = any(text in str(error) for text in FULL_MEMORY)
    return isinstance(error, MemoryError) or type(error).__name__ == OUT_OF_MEMORY or full


def _refuse(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
