"""Lets the parent of a fork decide about each of its system calls: let it happen, or have it fail. Linux on x86-64.

The fork puts a filter on itself (seccomp) which stops chosen calls until the parent has answered; threads and processes
that it starts have the filter too. Calls are counted over all of them, in one order.
"""

import ctypes
import errno
import fcntl
import os
import platform
import select
import socket
import struct
from collections.abc import Callable, Collection

from stress.faults.calls import NUMBERS, Call, seen

PR_SET_NO_NEW_PRIVS = 38
SECCOMP, SET_MODE_FILTER, NEW_LISTENER = 317, 1, 1 << 3
USER_NOTIF, ALLOW = 0x7FC00000, 0x7FFF0000
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
RECEIVE, SEND = 0xC0502100, 0xC0182101
CONTINUE = 1
NOTICE, ANSWER = struct.Struct("QIIiIQ6Q"), struct.Struct("QqiI")

Decide = Callable[[Call], int | None]
"""Told of a call before it happens; returns the errno with which it fails, or None to let it happen."""


class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def why_not() -> str | None:
    """Why system calls cannot be watched here; None if they can."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return f"expected Linux on x86-64, got {platform.system()} on {platform.machine()}"
    if not (pid := os.fork()):
        try:
            os.close(install(["openat"]))
        except OSError:
            os._exit(1)
        os._exit(0)
    return (
        "expected a kernel that lets a parent answer system calls (seccomp), got none"
        if os.waitpid(pid, 0)[1]
        else None
    )


def install(names: Collection[str]) -> int:
    """Stop these calls of this process from now on; returns the descriptor by which they are answered."""
    libc = ctypes.CDLL(None, use_errno=True)
    stops = [(JUMP_IF_EQUAL, len(names) - i, 0, NUMBERS[name]) for i, name in enumerate(names)]
    lines = [(LOAD, 0, 0, 0), *stops, (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, USER_NOTIF)]
    content = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    program = Program(len(lines), ctypes.cast(content, ctypes.c_void_p))
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    found = libc.syscall(SECCOMP, SET_MODE_FILTER, NEW_LISTENER, ctypes.byref(program))
    if found < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return int(found)


class Watched:
    """The two ends of a fork whose calls are watched: `begin` in the fork, `answer` in its parent."""

    def __init__(self, names: Collection[str]) -> None:
        self.names = names
        self.parent, self.child = socket.socketpair()

    def begin(self) -> None:
        """In the fork, as the last thing before the work."""
        descriptor = install(self.names)
        socket.send_fds(self.child, [b"x"], [descriptor])
        os.close(descriptor)
        self.parent.close()
        self.child.close()

    def answer(self, decide: Decide, until: float, clock: Callable[[], float]) -> None:
        """Decide about calls until no process is left that could make one, or `clock` has passed `until`."""
        self.child.close()
        with self.parent:
            descriptors = socket.recv_fds(self.parent, 1, 1)[1]
        if not descriptors:
            return
        try:
            poll = select.poll()
            poll.register(descriptors[0], select.POLLIN)
            while (left := until - clock()) > 0:
                for _, event in poll.poll(1000 * left):
                    if not event & select.POLLIN:
                        return  # all have ended
                    _answer_one(descriptors[0], decide)
        finally:
            os.close(descriptors[0])


def _answer_one(descriptor: int, decide: Decide) -> None:
    notice = bytearray(NOTICE.size)
    try:
        fcntl.ioctl(descriptor, RECEIVE, notice)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.EINTR):  # the process has ended meanwhile
            return
        raise
    identity, pid, _, number, _, _, *arguments = NOTICE.unpack(notice)
    code = decide(seen(pid, number, arguments))
    answer = (identity, 0, 0, CONTINUE) if code is None else (identity, 0, -code, 0)
    try:
        fcntl.ioctl(descriptor, SEND, ANSWER.pack(*answer))
    except OSError as exc:
        if exc.errno not in (errno.ENOENT, errno.EINPROGRESS):
            raise
