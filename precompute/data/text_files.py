"""Reads a file of text, JSON or a table, compressed or not, row by row; refuses malformed lines by number.

`datasets` would guess types (a response "12" in a .csv becomes a number, a column of dates timestamps) and cannot say
which line is malformed.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from shards import strict_json
from shards.errors import DataError
from shards.files import about


@dataclass(slots=True)
class Extent:
    """How far a source is read: `done` of `total`, in bytes or rows. total: 0 while nothing is known."""

    total: int = 0
    done: int = 0

    @property
    def share(self) -> float:
        """From 0, where nothing is known, to 1."""
        return self.done / self.total if self.total else 0.0


Row = dict[str, Any]
WhereRow = tuple[str, Row]

TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
COMPRESSIONS = (".gz", ".zst")
_CHUNK_BYTES = 1 << 11
"""Read from a zstd stream at a time: what a hostile one makes of it still fits into memory (sixty thousand times)."""
MAX_LINE_BYTES, MAX_LIST_BYTES = 1 << 26, 1 << 30
"""Of a line of text, and of a .json file that is one list."""
_LINES_PER_LOOK = 10
_LONGEST_FIELD = 2**31 - 1
_BLANK = b"\xef\xbb\xbf \t\r\n"


def text_rows(path: Path, kind: str, compression: str, extent: Extent) -> Iterator[WhereRow]:
    """The rows of a file with one of TEXT_SUFFIXES, each with its place.

    A .json file holds a list of objects (it is then read as a whole) or JSON lines. The first row of .csv and .tsv
    files names the columns; all their values are text.
    """
    lines = _lines(path, compression, extent)
    if kind in (".csv", ".tsv"):
        yield from _separated_rows(path.name, lines, "\t" if kind == ".tsv" else ",")
    elif kind == ".json":
        yield from _json_rows(path.name, lines)
    else:
        yield from _json_lines(path.name, lines)


def _json_rows(name: str, lines: Iterator[bytes]) -> Iterator[WhereRow]:
    start: list[bytes] = []
    for line in lines:
        start.append(line)
        if line.lstrip(_BLANK):
            break
    if not start or not start[-1].lstrip(_BLANK).startswith(b"["):
        yield from _json_lines(name, chain(start, lines))
        return
    for number, value in enumerate(_parse(_joined(name, chain(start, lines)), name, "a list of JSON objects")):
        where = f"{name} row {number}"
        yield where, _object(value, where)


def _joined(name: str, lines: Iterable[bytes]) -> bytes:
    content = bytearray()
    for line in lines:
        content += line
        if len(content) > MAX_LIST_BYTES:
            raise DataError(f"{name}: expected a list of at most {MAX_LIST_BYTES:,} bytes, got more; use JSON lines")
    return bytes(content)


def _json_lines(name: str, lines: Iterable[bytes]) -> Iterator[WhereRow]:
    for number, line in enumerate(lines, start=1):
        if line.strip(_BLANK if number == 1 else None):
            where = f"{name} line {number}"
            yield where, _object(_parse(line, where, "a JSON object"), where)


def _parse(text: bytes, where: str, expected: str) -> Any:
    try:
        return strict_json.loads(text.decode("utf-8-sig"), constants=True, large=True)
    except json.JSONDecodeError as exc:
        place = f"line {exc.lineno} column {exc.colno}" if exc.lineno > 1 else f"column {exc.colno}"
        fault = f"{exc.msg.removesuffix(' at')} at {place}"
        raise DataError(f"{where}: expected {expected}, got text that is not JSON ({fault})") from exc
    except ValueError as exc:
        raise DataError(f"{where}: expected {expected}, got text that is not JSON ({exc})") from exc


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def _separated_rows(name: str, lines: Iterable[bytes], delimiter: str) -> Iterator[WhereRow]:
    records = _records(name, lines, delimiter)
    header: list[str] = []
    for where, fields in records:
        if not header:
            header = fields
            if len(set(header)) < len(header):
                raise DataError(f"{where}: expected a different name for each column, got {', '.join(header)}")
            continue
        if len(fields) != len(header):
            raise DataError(f"{where}: expected {len(header)} fields, as the first line has, got {len(fields)}")
        yield where, dict(zip(header, fields, strict=True))


def _records(name: str, lines: Iterable[bytes], delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """Rows of fields, with the line on which each begins; blank lines are skipped."""
    csv.field_size_limit(_LONGEST_FIELD)  # for the whole process; the default of 128 KiB is too short for responses
    reader = csv.reader(_decoded(name, lines), delimiter=delimiter, strict=True)
    while True:
        where = f"{name} line {reader.line_num + 1}"
        try:
            fields = next(reader, None)
        except csv.Error as exc:
            raise DataError(f"{where}: expected a row of fields apart by {delimiter!r}, got {exc}") from exc
        if fields is None:
            return
        if fields:
            yield where, fields


def _decoded(name: str, lines: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as exc:
            raise DataError(f"{name} line {number}: expected text in UTF-8, got other bytes ({exc})") from exc


def _lines(path: Path, compression: str, extent: Extent) -> Iterator[bytes]:
    """The lines of a file with their line ends. Raises DataError if compressed data is damaged or incomplete."""
    try:
        with about(path), path.open("rb") as file:
            extent.total = path.stat().st_size
            for number, line in enumerate(_unpacked(file, compression)):
                if len(line) > MAX_LINE_BYTES:
                    raise DataError(
                        f"{path.name} line {number + 1}: expected at most {MAX_LINE_BYTES:,} bytes, got more"
                    )
                if number % _LINES_PER_LOOK == 0:
                    extent.done = file.tell()
                yield line
            extent.done = extent.total
    except (zstandard.ZstdError, gzip.BadGzipFile, zlib.error, EOFError) as exc:
        stream = {".zst": "zstd", ".gz": "gzip"}[compression]
        raise DataError(f"{path.name}: expected a whole {stream} stream, got {exc}") from exc


def _unpacked(file: BinaryIO, compression: str) -> Iterator[bytes]:
    if compression == ".zst":
        yield from _cut_into_lines(_zstd_pieces(file))
    elif compression == ".gz":
        with gzip.open(file) as unpacked:
            yield from iter(partial(unpacked.readline, MAX_LINE_BYTES + 1), b"")
    else:
        yield from iter(partial(file.readline, MAX_LINE_BYTES + 1), b"")


def _cut_into_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    unfinished = b""
    for piece in pieces:
        *lines, last = piece.split(b"\n")
        if lines:
            lines[0] = unfinished + lines[0]
            unfinished = b""
        for line in lines:
            yield line + b"\n"
        unfinished += last
        if len(unfinished) > MAX_LINE_BYTES:
            break
    if unfinished:
        yield unfinished


def _zstd_pieces(file: BinaryIO) -> Iterator[bytes]:
    # stream_reader takes the end of the file for the end of the data; only a frame object notices an unfinished frame
    decompressor, frame = zstandard.ZstdDecompressor(), None
    while chunk := file.read(_CHUNK_BYTES):
        while chunk:
            frame = frame or decompressor.decompressobj()
            yield frame.decompress(chunk)
            chunk = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("an end of file inside a frame")
