"""Defects planted on purpose, each of which the campaign must find."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from shards.files import temporary_name
from shards.format import writer


@contextlib.contextmanager
def swallowed() -> Iterator[None]:
    """A flush to the disk whose errors nobody sees."""
    plain = writer.flush

    def flush(path: Path) -> None:
        with contextlib.suppress(OSError):
            plain(path)

    with mock.patch.object(writer, "flush", flush), mock.patch("shards.copy.folder.flush", flush):
        yield


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """A file that gets its name though writing it failed."""

    def write_bytes(folder: Path, file: str, content: bytes) -> None:
        temporary = temporary_name(folder, file)
        with contextlib.suppress(OSError):
            temporary.write_bytes(content)
        temporary.replace(folder / file)

    with mock.patch.object(writer, "write_bytes", write_bytes):
        yield


@contextlib.contextmanager
def in_place() -> Iterator[None]:
    """A file that is written under its own name."""
    with mock.patch.object(writer, "write_bytes", lambda folder, file, content: (folder / file).write_bytes(content)):
        yield


DEFECTS = {
    "an error of fsync swallowed": swallowed,
    "a failed write published": unchecked,
    "written in place": in_place,
}
