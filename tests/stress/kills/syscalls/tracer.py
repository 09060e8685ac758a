"""Runs a function in a fork under ptrace: records the calls by which it changes files, or kills it at one of them."""

import ctypes
import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from stress import forked
from stress.forked import Ended
from stress.kills.syscalls.calls import DATA, Call, Info, decode, stop_at_calls

Moment = Literal["before", "half", "after"]
"""half: the file has half of the bytes that the call wrote."""

TRACE_ME, CONT, SYSCALL, SET_OPTIONS, GET_SYSCALL_INFO = 0, 7, 24, 0x4200, 0x420E
OPTIONS = 0x100000 | 0x80 | 0x8 | 0x4 | 0x2 | 0x1  # EXITKILL, seccomp, clone, vfork, fork, and which stop is a call's
SECCOMP_STOP, CALL_STOP = signal.SIGTRAP | 7 << 8, signal.SIGTRAP | 0x80
WALL = 0x40000000  # wait for threads too

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


@dataclass(frozen=True, slots=True)
class Point:
    """Where to kill: at the occurrence (from 1) of a call, known by its `step`, or at the call of a number if step is
    None."""

    step: str | None
    occurrence: int
    moment: Moment


@dataclass(frozen=True, slots=True)
class Traced:
    """ended: the exit code is -9 if it was killed. calls: all until then."""

    ended: Ended
    calls: Sequence[Call]


class Tracer:
    """Follows one fork. name: call -> its step, or "" for a call that is not of interest."""

    def __init__(self, name: Callable[[Call], str], point: Point | None) -> None:
        self.name, self.point = name, point
        self.calls: list[Call] = []
        self.inside: dict[int, tuple[int, int | None, int, bool]] = {}  # thread -> call, descriptor, size, kill after
        self.seen = 0
        self.pid = 0

    def follow(self, function: Callable[[], int | None]) -> int:
        """Run the function in a fork to its end; returns the exit code, or minus the signal."""
        if not (pid := os.fork()):
            _begin(function)
        self.pid = pid
        os.waitpid(pid, 0)
        _ptrace(SET_OPTIONS, pid, 0, OPTIONS)
        _ptrace(CONT, pid, 0, 0)
        code = 0
        while True:
            try:
                found, status = os.waitpid(-1, WALL)
            except ChildProcessError:
                return code
            if os.WIFSTOPPED(status):
                self._go_on(found, status >> 8)
            elif found == pid:
                code = os.waitstatus_to_exitcode(status)

    def _go_on(self, thread: int, stop: int) -> None:
        try:
            if stop == SECCOMP_STOP:
                _ptrace(SYSCALL if self._before(thread) else CONT, thread, 0, 0)
            elif stop == CALL_STOP:
                self._after(thread)
                _ptrace(CONT, thread, 0, 0)
            else:  # another event, the first stop of a thread, or a signal
                quiet = stop >> 8 or stop in (signal.SIGTRAP, signal.SIGSTOP)
                _ptrace(CONT, thread, 0, 0 if quiet else stop)
        except (ProcessLookupError, FileNotFoundError):
            pass  # killed meanwhile: nothing of it is left in /proc

    def _before(self, thread: int) -> bool:
        """True if the call is of interest."""
        info = Info()
        _ptrace(GET_SYSCALL_INFO, thread, ctypes.sizeof(info), ctypes.addressof(info))
        name, paths, descriptor = decode(thread, info)
        call = Call(name, paths)
        if not (step := self.name(call)):
            return False
        here = self._is_here(step)
        if here and self.point is not None and self.point.moment == "before":
            os.kill(self.pid, signal.SIGKILL)
            return False
        size = _size(thread, descriptor) if here and name in DATA else 0
        self.inside[thread] = (len(self.calls), descriptor, size, here)
        self.calls.append(call)
        return True

    def _is_here(self, step: str) -> bool:
        if self.point is None or self.point.step not in (None, step):
            return False
        self.seen += 1
        return self.seen == self.point.occurrence

    def _after(self, thread: int) -> None:
        number, descriptor, size, here = self.inside.pop(thread)
        info = Info()
        _ptrace(GET_SYSCALL_INFO, thread, ctypes.sizeof(info), ctypes.addressof(info))
        call = self.calls[number]
        result = ctypes.c_int64(info.nr).value  # of an exit stop: where the number of a call is before it
        self.calls[number] = Call(call.name, call.paths, result >= 0)
        if here and self.point is not None:
            if self.point.moment == "half" and call.name in DATA and (now := _size(thread, descriptor)) > size:
                os.truncate(f"/proc/{thread}/fd/{descriptor}", size + (now - size) // 2)
            os.kill(self.pid, signal.SIGKILL)


def traced(
    function: Callable[[], int | None], log: Path, name: Callable[[Call], str], point: Point | None, seconds: float
) -> Traced:
    """Run a function in a fork, to its end or to the point where it is killed."""
    result = Path(f"{log}.calls")

    def follow() -> int:
        tracer = Tracer(name, point)
        code = tracer.follow(function)
        result.write_text(json.dumps({"code": code, "calls": [asdict(call) for call in tracer.calls]}))
        return 0

    ended = forked.run(follow, log, seconds)
    if ended.code is None:
        return Traced(ended, [])
    if ended.code:
        raise RuntimeError(f"the tracer ended with {ended.code}: {ended.err}")
    found = json.loads(result.read_text())
    calls = [Call(call["name"], tuple(call["paths"]), call["well"]) for call in found["calls"]]
    return Traced(Ended(code=found["code"], out=ended.out, err=ended.err), calls)


def _begin(function: Callable[[], int | None]) -> None:
    def begun() -> int | None:
        _ptrace(TRACE_ME, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        stop_at_calls()
        return function()

    forked.end_with(begun)


def _ptrace(request: int, pid: int, address: int, data: int) -> int:
    ctypes.set_errno(0)
    found = int(_libc.ptrace(request, pid, address, data))
    if found == -1 and (error := ctypes.get_errno()):
        raise OSError(error, os.strerror(error))
    return found


def _size(thread: int, descriptor: int | None) -> int:
    return Path(f"/proc/{thread}/fd/{descriptor}").stat().st_size
