"""Files of this machine: temporary names, sizes, sha256, and what is surely on the disk. Only Python."""

import errno
import hashlib
import os
import platform
import stat
from collections.abc import Callable
from pathlib import Path

TEMPORARY_GLOB = ".*.aligndistil-tmp"


def temporary_name(folder: Path, file: str, use: str = "") -> Path:
    """A temporary name for this process only: two that write the same file must not mix their bytes.

    Processes of two machines may have one number in the same folder. use: tells the uses of one process apart.
    """
    return folder / f".{file}.{platform.node()}-{os.getpid()}{use}.aligndistil-tmp"


def file_sizes(folder: Path) -> dict[str, int]:
    """The files directly in a folder: name -> bytes; none if there is no such folder."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as found:
        return {entry.name: entry.stat().st_size for entry in found if entry.is_file()}


def read_regular(path: Path, most: int) -> bytes:
    """The content of a regular file of at most so many bytes. Raises OSError, also for a pipe or a device, which could
    block or never end."""
    require_regular(path, path.stat())  # a device may do something when it is opened
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        found = os.fstat(file.fileno())
        require_regular(path, found)
        if found.st_size > most:
            raise OSError(errno.EFBIG, f"expected at most {most:,} bytes, got {found.st_size:,}", str(path))
        return file.read(found.st_size)


def require_regular(path: Path, found: os.stat_result) -> None:
    """Raise OSError for a folder, a pipe or a device where a file belongs. found: its state."""
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "a pipe or a device where a file belongs", str(path))


def file_sha256(path: Path, read: Callable[[int], None] = lambda size: None) -> str:
    """sha256 of a file, in hex; the file is read in pieces. read: told the bytes of each piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
            read(len(piece))
    return digest.hexdigest()


def flush(path: Path) -> None:
    """Wait until the content of a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_still(path: Path, descriptor: int) -> bool:
    """Whether a path still names the file that was opened there."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
