"""Opens a data source and gives its rows one by one, each with the words that say where it stands.

JSON is read here and not by `datasets`, whose Arrow reader turns a column of dates into timestamps and cannot say which
line is malformed. Other local files stream through `datasets` without its cache: the cache takes a changed file for the
old one when the modification time is equal, as it is after `cp -p` or `rsync -t`. Only hub data is cached.
"""

import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import zstandard

from shards.errors import DataError

Row = dict[str, Any]

_SUFFIXES = (".jsonl", ".jsonl.zst", ".json", ".parquet", ".arrow")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_CHUNK_BYTES = 1 << 20


def read_rows(data: str, split: str = "train") -> Iterator[tuple[str, Row]]:
    """The rows of `data` in order, each as (where, row), read as they are asked for.

    `data` is a file (.jsonl, .jsonl.zst, .json, .parquet, .arrow), a folder (written by `save_to_disk`, or a data set
    as the hub lays it out) or a hub name. `where` is "prefs.jsonl line 17" for JSON lines, counted from 1 with blank
    lines counted but not given, else "NAME row 16", counted from 0. A .json file holds a list of objects (it is then
    read whole) or JSON lines. `split` names a split of a folder or of a hub data set; a file has only "train".

    Raises DataError where nothing can be opened, the split is unknown, or a row is not an object.
    """
    path = Path(data)
    if path.is_dir():
        yield from _folder_rows(path, split)
    elif data.endswith(_SUFFIXES) or path.exists() or not _HUB_NAME.fullmatch(data):
        yield from _file_rows(path, split)
    else:
        yield from _numbered(data, lambda: _open_dataset(data, split))


def _file_rows(path: Path, split: str) -> Iterator[tuple[str, Row]]:
    if not path.is_file():
        raise DataError(f"{path}: expected a data file, a folder or a hub name, found nothing there")
    if split != "train":
        raise DataError(f"{path}: expected split train, the only one of a file, got {split}")
    name = path.name
    if name.endswith(".jsonl"):
        yield from _json_lines(name, _plain_lines(path))
    elif name.endswith(".jsonl.zst"):
        yield from _json_lines(name, _zstd_lines(path))
    elif name.endswith(".json"):
        yield from _json_rows(path)
    elif name.endswith((".parquet", ".arrow")):
        yield from _numbered(name, lambda: _stream_file(path))
    else:
        raise DataError(f"{path}: expected a name that ends in {', '.join(_SUFFIXES)}, got {name}")


def _folder_rows(path: Path, split: str) -> Iterator[tuple[str, Row]]:
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        yield from _numbered(path.name, lambda: _load_saved(path, split))
        return
    with tempfile.TemporaryDirectory(prefix="aligndistil-data-", ignore_cleanup_errors=True) as cache_dir:
        yield from _numbered(path.name, lambda: _open_dataset(str(path), split, cache_dir=cache_dir))


def _numbered(name: str, open_rows: Callable[[], Iterable[Row]]) -> Iterator[tuple[str, Row]]:
    try:
        for number, row in enumerate(open_rows()):
            yield f"{name} row {number}", row
    except DataError:
        raise
    except Exception as exc:  # datasets, pyarrow and the hub client raise errors of many families
        lines = str(exc).strip().splitlines() or [""]
        raise DataError(f"{name}: expected data that datasets can read, got {type(exc).__name__}: {lines[0]}") from exc


def _open_dataset(name: str, split: str, cache_dir: str | None = None) -> Iterable[Row]:
    import datasets

    return datasets.load_dataset(name, split=split, cache_dir=cache_dir)


def _stream_file(path: Path) -> Iterable[Row]:
    import datasets

    builder = path.suffix.removeprefix(".")
    return datasets.load_dataset(builder, data_files=str(path), split="train", streaming=True)


def _load_saved(path: Path, split: str) -> Iterable[Row]:
    import datasets

    saved = datasets.load_from_disk(str(path))
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise DataError(f"{path}: expected split {split}, found {', '.join(saved)}")
        return saved[split]
    if split not in ("train", str(saved.split)):
        raise DataError(f"{path}: expected split {split}, found one data set without splits")
    return saved


def _json_rows(path: Path) -> Iterator[tuple[str, Row]]:
    text = path.read_bytes()
    if not text.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        yield from _json_lines(path.name, text.split(b"\n"))
        return
    for number, value in enumerate(_parse(text, path.name, "a list of JSON objects")):
        where = f"{path.name} row {number}"
        yield where, _object(value, where)


def _json_lines(name: str, lines: Iterable[bytes]) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{name} line {number}"
            yield where, _object(_parse(line, where, "a JSON object"), where)


def _parse(text: bytes, where: str, expected: str) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except json.JSONDecodeError as exc:
        place = f"line {exc.lineno} column {exc.colno}" if exc.lineno > 1 else f"column {exc.colno}"
        fault = f"{exc.msg.removesuffix(' at')} at {place}"
        raise DataError(f"{where}: expected {expected}, got text that is not JSON ({fault})") from exc
    except (ValueError, RecursionError) as exc:
        raise DataError(f"{where}: expected {expected}, got text that is not JSON ({exc})") from exc


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def _plain_lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from file


def _zstd_lines(path: Path) -> Iterator[bytes]:
    """Lines of a zstd file of one or more frames. Raises DataError where the data is damaged or ends inside a frame."""
    unfinished = b""
    try:
        for piece in _zstd_pieces(path):
            *lines, unfinished = (unfinished + piece).split(b"\n")
            yield from lines
    except (zstandard.ZstdError, EOFError) as exc:
        raise DataError(f"{path.name}: expected a whole zstd stream, got {exc}") from exc
    if unfinished:
        yield unfinished


def _zstd_pieces(path: Path) -> Iterator[bytes]:
    # stream_reader takes the end of the file for the end of the data; only a frame object knows that it is unfinished
    decompressor, frame = zstandard.ZstdDecompressor(), None
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            while chunk:
                frame = frame or decompressor.decompressobj()
                yield frame.decompress(chunk)
                chunk = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("an end of file inside a frame")
