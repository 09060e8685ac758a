"""Files of this machine: temporary names, sizes, sha256, and what is surely on the disk. Only Python."""

import glob
import hashlib
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

TEMPORARY_SUFFIX = ".aligndistil-tmp"
TEMPORARY_GLOB = f".*{TEMPORARY_SUFFIX}"


def temporary_name(folder: Path, file: str, use: str = "") -> Path:
    """A temporary name for this process only: two that write the same file must not mix their bytes.

    Processes of two machines may have one number in the same folder. use: tells the uses of one process apart.
    """
    return folder / f".{file}.{platform.node()}-{os.getpid()}{use}{TEMPORARY_SUFFIX}"


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


def flush(path: Path) -> None:
    """Wait until the content of a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder with the parents that it lacks, and wait until their names are on the disk."""
    lacking = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in lacking:
        flush(path.parent)


def remove_temporary_files(folder: Path, file: str | None = None) -> None:
    """Remove what a killed command left in a folder under temporary names; of one file only, if it is named.

    For whoever keeps others out: a temporary file of a command that is at work would be removed too.
    """
    pattern = TEMPORARY_GLOB if file is None else f".{glob.escape(file)}.*{TEMPORARY_SUFFIX}"
    for path in folder.glob(pattern):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def is_still(path: Path, descriptor: int) -> bool:
    """Whether a path still names the file that was opened there."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
