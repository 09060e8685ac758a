"""Files of this machine: temporary names, sizes, sha256, and what is surely on the disk. Only Python."""

import hashlib
import os
import platform
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

TEMPORARY_GLOB = ".*.aligndistil-tmp"


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
    return folder / f".{file}.{platform.node()}-{os.getpid()}{use}.aligndistil-tmp"


def file_sizes(folder: Path) -> dict[str, int]:
    """The files directly in a folder: name -> bytes; none if there is no such folder."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as found:
        return {entry.name: entry.stat().st_size for entry in found if entry.is_file()}


def file_sha256(path: Path, read: Callable[[int], None] = lambda size: None) -> str:
    """sha256 of a file, in hex; the file is read in pieces. read: told the bytes of each piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
            read(len(piece))
    return digest.hexdigest()


def file_sums(path: Path) -> Sums:
    """Size, crc32 and sha256 of a file, read once."""
    digest, crc32, size = hashlib.sha256(), 0, 0
    with path.open("rb") as file:
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
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_still(path: Path, descriptor: int) -> bool:
    """Whether a path still names the file that was opened there."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
