"""System calls about files: their numbers on x86-64, which file each is about, and the errors each can end with."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stress.processes import text_at

NUMBERS = {
    **{"read": 0, "write": 1, "open": 2, "pread64": 17, "pwrite64": 18, "readv": 19, "writev": 20, "sendfile": 40},
    **{"fsync": 74, "fdatasync": 75, "ftruncate": 77, "getdents64": 217, "rename": 82, "mkdir": 83, "rmdir": 84},
    **{"creat": 85, "link": 86, "unlink": 87, "fallocate": 285, "openat": 257, "mkdirat": 258, "unlinkat": 263},
    **{"renameat": 264, "linkat": 265, "renameat2": 316, "copy_file_range": 326, "mmap": 9},
}
NAMES = {number: name for name, number in NUMBERS.items()}

BY_DESCRIPTOR = {"sendfile": 0, "copy_file_range": 2, "mmap": 4} | dict.fromkeys(
    (
        "read",
        "write",
        "pread64",
        "pwrite64",
        "readv",
        "writev",
        "fsync",
        "fdatasync",
        "ftruncate",
        "fallocate",
        "getdents64",
    ),
    0,
)
"""The argument that is the descriptor of the file."""
BY_PATH = dict.fromkeys(("open", "creat", "mkdir", "rmdir", "link", "unlink", "rename"), 0) | dict.fromkeys(
    ("openat", "mkdirat", "unlinkat", "renameat", "renameat2", "linkat"), 1
)
"""The argument that is the path of the file; with `at` the one before it is the folder's descriptor."""
AT_CURRENT_FOLDER = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A system call that is about to happen. path: the file it is about, or "" if it cannot be told."""

    pid: int
    name: str
    path: str
    writes: bool


def seen(pid: int, number: int, arguments: Sequence[int]) -> Call:
    name = NAMES[number]
    writes = name not in ("read", "pread64", "readv", "getdents64", "mmap")
    if name in BY_DESCRIPTOR:
        return Call(pid=pid, name=name, path=_open_file(pid, arguments[BY_DESCRIPTOR[name]]), writes=writes)
    at = BY_PATH[name]
    path = _text(pid, arguments[at])
    if not path.startswith("/"):
        folder = _signed(arguments[at - 1]) if at else AT_CURRENT_FOLDER
        path = f"{_link(f'/proc/{pid}/cwd') if folder == AT_CURRENT_FOLDER else _open_file(pid, folder)}/{path}"
    if name in ("open", "openat"):
        writes = bool(arguments[at + 1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return Call(pid=pid, name=name, path=path, writes=writes)


def _open_file(pid: int, descriptor: int) -> str:
    return _link(f"/proc/{pid}/fd/{_signed(descriptor)}")


def _link(path: str) -> str:
    try:
        return str(Path(path).readlink()).removesuffix(" (deleted)")
    except OSError:
        return ""


def _text(pid: int, address: int) -> str:
    """The string there; "" if it cannot be read."""
    try:
        return text_at(pid, address)
    except (OSError, ValueError):
        return ""


def _signed(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value
