"""Runs a function in a fork of this process, so that what is planted here is there too, and ends it in time.

This process must not have run torch's own threads: campaigns do all work in forks.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.002


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
    if pid := os.fork():
        return pid
    code = 70
    try:
        os.setpgid(0, 0)
        for number, name in ((1, "out"), (2, "err")):
            file = os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
            os.close(file)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))  # pytest has its own
        code = function() or 0
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


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


def run(function: Callable[[], int | None], log: Path, seconds: float = 120) -> Ended:
    return wait(start(function, log), log, seconds)
