"""Runs a function in a fork of this process, so that what is planted here is there too, and ends it in time.

This process must not have run torch's own threads: campaigns do all work in forks.
"""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

POLL_SECONDS = 0.002
SECONDS_TO_DIE = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a fork ended. code: its exit code, minus the signal that ended it, or None if it hung and was killed."""

    code: int | None
    out: str
    err: str


def start(function: Callable[[], int | None], log: Path) -> int:
    """Fork; the child calls `function`, which returns an exit code or None for 0. log: stem of its .out and .err.

    The child leads a process group of its own, so that all it starts ends with it. Returns its pid.
    """
    sys.stdout.flush(), sys.stderr.flush()
    if not (pid := os.fork()):
        end_with(lambda: _alone(function, log))
    with contextlib.suppress(OSError):  # whoever comes first, so that the group is there when this returns
        os.setpgid(pid, pid)
    return pid


def _alone(function: Callable[[], int | None], log: Path) -> int | None:
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    # pytest has its own
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    return function()


def end_with(function: Callable[[], int | None]) -> NoReturn:
    """Call a function in a fork, and end the fork with its exit code, whatever it raises."""
    code = 70
    try:
        code = function() or 0
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush(), sys.stderr.flush()
        finally:
            os._exit(code)  # whatever cannot be flushed: the rest of the stack is the parent's


def wait(pid: int, log: Path, seconds: float) -> Ended:
    """Wait for a fork; after `seconds`, kill it and all that it started."""
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            break
        if time.monotonic() > end:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            code = None
            break
        time.sleep(POLL_SECONDS)
    out, err = (Path(f"{log}.{name}") for name in ("out", "err"))
    return Ended(code=code, out=out.read_text(errors="replace"), err=err.read_text(errors="replace"))


def killed(pid: int, log: Path, seconds: float) -> Ended:
    """Kill a fork and all that it started after so many seconds, or let it end before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
        time.sleep(POLL_SECONDS)
    kill(pid)
    return wait(pid, log, SECONDS_TO_DIE)


def kill(pid: int) -> None:
    """End a fork, and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def run(function: Callable[[], int | None], log: Path, seconds: float = 120) -> Ended:
    return wait(start(function, log), log, seconds)
