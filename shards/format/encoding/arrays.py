"""The columns of a record batch as flat arrays with row offsets, and their crc32. Pure: no files."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from shards import strict_json
from shards.errors import CacheDamaged
from shards.format import schema

try:
    from zlib_ng.zlib_ng import crc32  # the same sums in a quarter of the time
except ImportError:  # no wheel for this platform
    from zlib import crc32


class Flat(NamedTuple):
    """A column: its values (an array; for strings, of UTF-8 bytes), and where each row begins and the last one ends.

    offsets: int32, from 0; None if a row has one value. Both are little-endian, as numpy and pyarrow are on every
    platform with wheels.
    """

    values: Any
    offsets: Any


def flatten(batch: pa.RecordBatch) -> dict[str, Flat]:
    """The columns of a record batch, by name."""
    return {name: _flat(array) for name, array in zip(batch.schema.names, batch.columns, strict=True)}


def batch_metadata(batch: pa.RecordBatch, first_row: int) -> dict[bytes, bytes]:
    """Record-batch metadata: its first row in the cache, and the crc32 of every column as one JSON object."""
    sums = {name: column_crc32(column) for name, column in flatten(batch).items()}
    crc32 = json.dumps(sums, sort_keys=True, separators=(",", ":"))
    return {schema.FIRST_ROW_KEY: str(first_row).encode(), schema.CRC32_KEY: crc32.encode()}


def sums_form(columns: Iterable[str], names: Iterable[str]) -> re.Pattern[bytes]:
    """What `batch_metadata` writes as the crc32 of these columns, with those of `names` as groups."""
    number, wanted = r"0|[1-9][0-9]{0,9}", set(names)
    pairs = (f'"{name}":(?{f"P<{name}>" if name in wanted else ":"}{number})' for name in sorted(columns))
    return re.compile(rf"\{{{','.join(pairs)}\}}".encode())


def check_crc32(
    batch: pa.RecordBatch, metadata: Mapping[bytes, bytes], where: str, form: re.Pattern[bytes] | None = None
) -> dict[str, Flat]:
    """The columns of the batch, each checked against its crc32. Raises CacheDamaged, naming the column.

    form: of `sums_form`, with the names of the batch. What is written so needs no reader of JSON, which is slower than
    the sums; anything else goes to the strict one.
    """
    columns = flatten(batch)
    found = {
        name: crc32(values) if offsets is None else crc32(offsets, crc32(values))  # `column_crc32`, without a call
        for name, (values, offsets) in columns.items()
    }
    written = form and form.fullmatch(metadata.get(schema.CRC32_KEY, b""))
    if not written or {name: int(number) for name, number in written.groupdict().items()} != found:
        _require_sums(found, metadata, where)
    return columns


def _require_sums(found: Mapping[str, int], metadata: Mapping[bytes, bytes], where: str) -> None:
    """Raise CacheDamaged, naming the first column with another crc32 than the metadata say."""
    if schema.CRC32_KEY not in metadata:
        raise CacheDamaged(f"{where}: expected crc32 metadata, got none")
    try:
        expected = strict_json.loads(metadata[schema.CRC32_KEY])
    except ValueError as exc:
        raise CacheDamaged(f"{where}: expected crc32 metadata to be a JSON object, got {exc}") from exc
    if not isinstance(expected, dict):
        raise CacheDamaged(f"{where}: expected crc32 metadata to be a JSON object, got {type(expected).__name__}")
    for name, number in found.items():
        if expected.get(name) != number:
            raise CacheDamaged(f"{where} column {name}: expected crc32 {expected.get(name)}, got {number}")


def column_crc32(column: Flat) -> int:
    """crc32 of a column's values as little-endian bytes, continued over its row offsets (int32, from 0).

    A boolean counts as one byte, a string as its UTF-8 bytes; a column without lists has no offsets.
    """
    values, offsets = column
    return crc32(b"" if offsets is None else offsets, crc32(values))


def _flat(array: pa.Array) -> Flat:
    if not (pa.types.is_list(array.type) or pa.types.is_string(array.type)):
        return Flat(array.to_numpy(zero_copy_only=False), None)
    offsets = np.frombuffer(array.buffers()[1], dtype=np.int32)[array.offset : array.offset + len(array) + 1]
    first, last = offsets[0], offsets[-1]
    if pa.types.is_string(array.type):
        values = array.buffers()[2]
        text = b"" if values is None else values.slice(first, last - first).to_pybytes()
        return Flat(text, offsets - first)
    return Flat(array.values.to_numpy(zero_copy_only=False)[first:last], offsets - first)
