"""The columns of a record batch as flat arrays with row offsets, and their crc32. Pure: no files."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

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


def check_crc32(batch: pa.RecordBatch, metadata: Mapping[bytes, bytes], where: str) -> dict[str, Flat]:
    """The columns of the batch, each checked against its crc32. Raises CacheDamaged, naming the column."""
    if schema.CRC32_KEY not in metadata:
        raise CacheDamaged(f"{where}: expected crc32 metadata, got none")
    try:
        expected = dict(json.loads(metadata[schema.CRC32_KEY].decode()))
    except (ValueError, TypeError) as exc:
        raise CacheDamaged(f"{where}: expected crc32 metadata to be a JSON object: {exc}") from exc
    columns = flatten(batch)
    for name, (values, offsets) in columns.items():
        found = crc32(values) if offsets is None else crc32(offsets, crc32(values))  # `column_crc32`, without a call
        if expected.get(name) != found:
            raise CacheDamaged(f"{where} column {name}: expected crc32 {expected.get(name)}, got {found}")
    return columns


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
