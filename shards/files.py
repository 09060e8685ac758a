"""Files of this machine: temporary names, sizes, sha256, and what is surely on the disk. Only Python."""

import contextlib
import errno
import fnmatch
import glob
import hashlib
import os
import platform
import shutil
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from shards.errors import AlignDistilError

TEMPORARY_SUFFIX = ".aligndistil-tmp"
TEMPORARY_GLOB = f".*{TEMPORARY_SUFFIX}"


class Sums(NamedTuple):
    """What is recorded of a file. The crc32 says which bit was flipped where the sha256 says that one was."""

    bytes: int
    crc32: int
    sha256: str

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Sums":
        return cls(int(data["bytes"]), int(data["crc32"]), str(data["sha256"]))


def temporary_name(folder: Path, file: str, use: str = "") -> Path:
    """A temporary name for this process only: two that write the same file must not mix their bytes.

    Processes of two machines may have one number in the same folder. use: tells the uses of one process apart.
    """
    return folder / f".{file}.{platform.node()}-{os.getpid()}{use}{TEMPORARY_SUFFIX}"


@contextlib.contextmanager
def about(path: Path | str) -> Iterator[None]:
    """Errors of the system name this file, unless they name one: those of reading, writing and flushing name none."""
    try:
        yield
    except AlignDistilError:
        raise
    except OSError as exc:
        if exc.filename is None and exc.errno is not None:  # gzip's own have no number
            exc.filename = str(path)
        raise


def matching(folder: Path, pattern: str) -> list[Path]:
    """The paths directly in a folder whose names match, sorted; none if there is no such folder.

    Raises OSError for a folder that cannot be read, which Path.glob takes for an empty one.
    """
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if fnmatch.fnmatchcase(path.name, pattern))


def paths_under(folder: Path) -> list[Path]:
    """All files and folders below a folder, sorted. Raises OSError as `matching`; Path.rglob would leave some out."""
    found = matching(folder, "*")
    return sorted([*found, *(path for inner in found if inner.is_dir() for path in paths_under(inner))])


def file_sizes(folder: Path) -> dict[str, int]:
    """The files directly in a folder: name -> bytes; none if there is no such folder."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as found:
        return {entry.name: entry.stat().st_size for entry in found if entry.is_file()}


def read_regular(path: Path, most: int) -> bytes:
    """The content of a regular file of at most so many bytes. Raises OSError, also for a pipe or a device, which could
    block or never end."""
    with about(path):
        require_regular(path, path.stat())  # a device may do something when it is opened
    with about(path), os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
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
    with about(path), path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
            read(len(piece))
    return digest.hexdigest()


def file_sums(path: Path) -> Sums:
    """Size, crc32 and sha256 of a file, read once."""
    digest, crc32, size = hashlib.sha256(), 0, 0
    with about(path), path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
            crc32, size = zlib.crc32(piece, crc32), size + len(piece)
    return Sums(size, crc32, digest.hexdigest())


def sums_of(content: bytes) -> Sums:
    return Sums(len(content), zlib.crc32(content), hashlib.sha256(content).hexdigest())


def flush(path: Path) -> None:
    """Wait until the content of a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with about(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder with the parents that it lacks, and wait until their names are on the disk."""
    lacking = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in lacking:
        flush(path.parent)


def erase(path: Path) -> None:
    """Remove a file, or a folder with all in it. An error names the folder; shutil's has the last name alone."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    try:
        shutil.rmtree(path)
    except OSError as exc:
        exc.filename = str(path)
        raise


def remove_temporary_files(folder: Path, file: str | None = None) -> None:
    """Remove what a killed command left in a folder under temporary names; of one file only, if it is named.

    For whoever keeps others out: a temporary file of a command that is at work would be removed too.
    """
    pattern = TEMPORARY_GLOB if file is None else f".{glob.escape(file)}.*{TEMPORARY_SUFFIX}"
    for path in matching(folder, pattern):
        erase(path)


def is_still(path: Path, descriptor: int) -> bool:
    """Whether a path still names the file that was opened there."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
