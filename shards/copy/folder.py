"""FolderStore: a folder of this machine as a store. A file gets its name when it is whole and on the disk."""

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from shards.errors import CacheMissing
from shards.files import about, file_sizes, flush, temporary_name
from shards.locks.lock import require_held

PIECE_BYTES = 1 << 22


class FolderStore:
    """The files of a folder. url: the folder, for messages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url: Any = folder

    def read(self, file: str) -> bytes:
        with about(self.folder / file):
            return self._path(file).read_bytes()

    def fetch(self, file: str, path: Path) -> None:
        with self._path(file).open("rb") as source, about(path), path.open("r+b") as sink:
            _copy_pieces(source, sink)
            sink.truncate()

    def put(self, file: str, content: bytes | Path, *, create: bool = True) -> bool:
        """A file that lies in the folder already, under a temporary name, is not copied."""
        target = self.folder / file
        if create and target.exists():
            return False
        if isinstance(content, Path) and content.parent == self.folder:
            return _named(content, target, create)
        temporary = temporary_name(self.folder, file, f"-{threading.get_ident()}.put")
        try:
            with about(temporary):
                if isinstance(content, Path):
                    with content.open("rb") as source, temporary.open("wb") as sink:
                        _copy_pieces(source, sink)
                else:
                    temporary.write_bytes(content)
            return _named(temporary, target, create)
        finally:
            temporary.unlink(missing_ok=True)

    def sizes(self) -> Mapping[str, int]:
        return file_sizes(self.folder)

    def version(self, file: str) -> tuple[str, int]:
        found = self._path(file).stat()
        return str(found.st_mtime_ns), found.st_size

    def _path(self, file: str) -> Path:
        path = self.folder / file
        if not path.is_file():
            raise CacheMissing(f"{path}: expected a file, found none")
        return path


def _copy_pieces(source: BinaryIO, sink: BinaryIO) -> None:
    """Copy what is left of a file. Errors of reading name the source."""
    while True:
        with about(source.name):
            piece = source.read(PIECE_BYTES)
        if not piece:
            break
        sink.write(piece)


def _named(path: Path, target: Path, create: bool) -> bool:
    """Give a file on the disk a second name. False if the name is taken, and `create`."""
    flush(path)
    require_held(target)
    try:
        if create:
            os.link(path, target)  # unlike a rename, it replaces nothing
        else:
            path.replace(target)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        if target.exists():
            return False
        path.replace(target)
    flush(target.parent)
    return True
