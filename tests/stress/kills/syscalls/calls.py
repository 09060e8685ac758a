"""The system calls that change files, as a tracer sees them: which they are, and what they name. x86-64 Linux."""

import ctypes
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from stress.processes import text_at

AT_FDCWD = 0xFFFFFF9C
CREATES = os.O_CREAT | os.O_TRUNC
BY_DESCRIPTOR = {
    1: "write", 18: "pwrite", 20: "writev", 296: "pwritev", 40: "sendfile", 74: "fsync", 75: "fdatasync",
    77: "ftruncate", 285: "fallocate",
}  # fmt: skip
BY_PATH = {76: "truncate", 82: "rename", 83: "mkdir", 84: "rmdir", 86: "link", 87: "unlink", 2: "open", 85: "creat"}
BY_FOLDER = {258: "mkdir", 263: "unlink", 264: "rename", 316: "rename", 265: "link", 257: "open"}
"""With a descriptor of the folder before each path."""
COPY_FILE_RANGE = 326  # its second descriptor is written to
NUMBERS = [*BY_DESCRIPTOR, *BY_PATH, *BY_FOLDER, COPY_FILE_RANGE]

DATA = frozenset({"write", "pwrite", "writev", "pwritev", "sendfile", "copy_file_range"})
FLUSHES = frozenset({"fsync", "fdatasync"})


@dataclass(frozen=True, slots=True)
class Call:
    """One system call: its name, the paths that it is about, and whether it did what was asked."""

    name: str
    paths: tuple[str, ...]
    well: bool = True


class Info(ctypes.Structure):
    """struct ptrace_syscall_info of a stop before a call."""

    _fields_: ClassVar = [
        ("op", ctypes.c_uint8), ("pad", ctypes.c_uint8 * 3), ("arch", ctypes.c_uint32), ("ip", ctypes.c_uint64),
        ("sp", ctypes.c_uint64), ("nr", ctypes.c_uint64), ("args", ctypes.c_uint64 * 6), ("data", ctypes.c_uint32),
    ]  # fmt: skip


def decode(pid: int, info: Any) -> tuple[str, tuple[str, ...], int | None]:
    """Name and paths of the call at which a process is stopped, and the descriptor that it writes to, if any."""
    number, args = info.nr, list(info.args)
    if number == COPY_FILE_RANGE:
        return "copy_file_range", (_opened(pid, args[2]),), args[2]
    if number in BY_DESCRIPTOR:
        return BY_DESCRIPTOR[number], (_opened(pid, args[0]),), args[0]
    if number in BY_PATH:
        name = BY_PATH[number]
        return name, tuple(_named(pid, AT_FDCWD, at) for at in args[: 2 if name in ("rename", "link") else 1]), None
    name = BY_FOLDER[number]
    pairs = [(args[0], args[1]), (args[2], args[3])] if name in ("rename", "link") else [(args[0], args[1])]
    if number == 263 and args[2]:  # AT_REMOVEDIR
        name = "rmdir"
    return name, tuple(_named(pid, folder, at) for folder, at in pairs), None


def _opened(pid: int, descriptor: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/fd/{descriptor & 0xFFFFFFFF}").readlink())
    except FileNotFoundError:
        return ""


def _named(pid: int, folder: int, address: int) -> str:
    base = Path(f"/proc/{pid}/cwd").readlink() if folder & 0xFFFFFFFF == AT_FDCWD else Path(_opened(pid, folder))
    return os.path.normpath(base / text_at(pid, address))


def stop_at_calls() -> None:
    """From now on this process, and what it starts, stops for its tracer before each of these calls (seccomp)."""
    libc = ctypes.CDLL(None, use_errno=True)
    program = _program()
    code = ctypes.create_string_buffer(program)
    head = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    no_new_privileges, set_seccomp, filter_mode = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(set_seccomp, filter_mode, head, 0, 0):
        raise OSError(ctypes.get_errno(), "no seccomp filter here")


def _program() -> bytes:
    """Classic BPF: TRACE for NUMBERS, for open and openat only if they create or empty a file; else ALLOW."""
    load, equal, any_bit, give = 0x20, 0x15, 0x45, 0x06
    trace, allow = 0x7FF00000, 0x7FFF0000
    plain = [number for number in NUMBERS if number not in (2, 257)]
    lines: list[tuple[int, int, int, int]] = [(load, 0, 0, 0)]
    for number, flags in ((2, 1), (257, 2)):
        # not this call: go on; else look at its flags
        lines += [(equal, 0, 4, number), (load, 0, 0, 16 + 8 * flags), (any_bit, 0, 1, CREATES)]
        lines += [(give, 0, 0, trace), (give, 0, 0, allow)]
    for i, number in enumerate(plain):
        lines.append((equal, len(plain) - i, 0, number))
    lines += [(give, 0, 0, allow), (give, 0, 0, trace)]
    return b"".join(struct.pack("HBBI", *line) for line in lines)
