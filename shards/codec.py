"""Responses <-> record batches. Pure: no files.

`float32` values: a stored value is the float32 nearest to the computed one (relative error at most 2^-24); ids, masks
and counts are exact.
"""

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from shards import schema
from shards.errors import CacheDamaged, OptionError
from shards.schema import Column, Pair, Role
from shards.scores import Response, Scores


def encode(responses: Sequence[Response], table: Sequence[Column], arrow_schema: pa.Schema) -> pa.RecordBatch:
    """The record batch that holds these rows, one column after the other of `table`."""
    arrays = []
    for column in table:
        values = [_value(response, column.name) for response in responses]
        if column.level == "row":
            arrays.append(pa.array(values, column.arrow_type))
        else:
            arrays.append(_list_array([np.ravel(v) for v in values], column))
    return pa.RecordBatch.from_arrays(arrays, schema=arrow_schema)


def decode(batch: pa.RecordBatch, roles: Iterable[Role], pairs: Iterable[Pair], num_nodes: int) -> list[Response]:
    """The rows of a record batch, with the values of these roles and pairs only; arrays are read-only views."""
    pairs = tuple(pairs)
    return [decode_row(row, pairs, num_nodes) for row in split_rows(batch, schema.columns(roles, pairs))]


def split_rows(batch: pa.RecordBatch, table: Iterable[Column]) -> list[dict[str, Any]]:
    """The values of each row, column name -> flat array, or a plain value at level `row`."""
    columns = {column.name: _rows(batch.column(column.name)) for column in table}
    return [{name: rows[i] for name, rows in columns.items()} for i in range(batch.num_rows)]


def decode_row(row: Mapping[str, Any], pairs: Iterable[Pair], num_nodes: int) -> Response:
    """A row of `split_rows`, with the values of the roles that it holds and of these pairs."""
    roles = [role for role in schema.ROLES if schema.logprobs_column(role) in row]
    negatives = [role for role in schema.NEGATIVES if schema.l1_distance_column(role) in row]
    return Response(
        sample_id=row[schema.SAMPLE_ID],
        pair_id=row[schema.PAIR_ID],
        chosen=row[schema.CHOSEN],
        response_start=row[schema.RESPONSE_START],
        input_ids=row[schema.INPUT_IDS],
        loss_mask=row[schema.LOSS_MASK],
        scores=Scores(
            support_count=row[schema.SUPPORT_COUNT],
            support_ids=row[schema.SUPPORT_IDS],
            logprobs={r: row[schema.logprobs_column(r)] for r in roles},
            next_logprob={r: row[schema.next_logprob_column(r)] for r in roles},
            tail_logprob={r: row[schema.tail_logprob_column(r)] for r in roles},
            l1_distance={n: row[schema.l1_distance_column(n)] for n in negatives},
            tail_logpartition={p: row[schema.tail_logpartition_column(p)].reshape(-1, num_nodes - 1) for p in pairs},
        ),
    )


def batch_metadata(batch: pa.RecordBatch, first_row: int) -> dict[bytes, bytes]:
    """Record-batch metadata: the row of the cache it begins with, and every column's crc32 as one JSON object."""
    sums = {name: column_crc32(batch.column(name)) for name in batch.schema.names}
    crc32 = json.dumps(sums, sort_keys=True, separators=(",", ":"))
    return {schema.FIRST_ROW_KEY: str(first_row).encode(), schema.CRC32_KEY: crc32.encode()}


def check_crc32(batch: pa.RecordBatch, metadata: Mapping[bytes, bytes], where: str) -> None:
    """Compare every column of the batch with its crc32. Raises CacheDamaged, naming the column."""
    if schema.CRC32_KEY not in metadata:
        raise CacheDamaged(f"{where}: expected crc32 metadata, got none")
    try:
        expected = dict(json.loads(metadata[schema.CRC32_KEY]))
    except (ValueError, TypeError) as exc:
        raise CacheDamaged(f"{where}: expected crc32 metadata to be a JSON object: {exc}") from exc
    for name in batch.schema.names:
        found = column_crc32(batch.column(name))
        if expected.get(name) != found:
            raise CacheDamaged(f"{where} column {name}: expected crc32 {expected.get(name)}, got {found}")


def column_crc32(array: pa.Array) -> int:
    """crc32 of a column's values as little-endian bytes, continued over its row offsets (int32, from 0).

    Booleans count as one byte each, strings as their UTF-8 bytes; a column without lists has no offsets.
    """
    if pa.types.is_list(array.type):
        values, offsets = _flat(array)
        return zlib.crc32(offsets.astype("<i4").tobytes(), zlib.crc32(values.tobytes()))
    if pa.types.is_string(array.type):
        texts = array.cast(pa.binary()).to_pylist()
        offsets = np.cumsum([0, *map(len, texts)])
        return zlib.crc32(offsets.astype("<i4").tobytes(), zlib.crc32(b"".join(texts)))
    return zlib.crc32(array.to_numpy(zero_copy_only=False).tobytes())


def _value(response: Response, name: str) -> Any:
    scores = response.scores
    by_column: dict[str, Any] = {
        schema.SUPPORT_COUNT: scores.support_count,
        schema.SUPPORT_IDS: scores.support_ids,
        **{schema.logprobs_column(r): v for r, v in scores.logprobs.items()},
        **{schema.next_logprob_column(r): v for r, v in scores.next_logprob.items()},
        **{schema.tail_logprob_column(r): v for r, v in scores.tail_logprob.items()},
        **{schema.l1_distance_column(n): v for n, v in scores.l1_distance.items()},
        **{schema.tail_logpartition_column(p): v for p, v in scores.tail_logpartition.items()},
    }
    return by_column[name] if name in by_column else getattr(response, name)


def _list_array(values: Sequence[np.ndarray], column: Column) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int64)
    if offsets[-1] > np.iinfo(np.int32).max:
        raise OptionError(f"rows_per_batch: expected record batches of under 2^31 values, got {offsets[-1]:,}")
    dtype = column.value_type.to_pandas_dtype()
    flat = pa.array(np.concatenate(values).astype(dtype, copy=False), column.value_type)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)


def _rows(array: pa.Array) -> list:
    if not pa.types.is_list(array.type):
        return array.to_pylist()
    values, offsets = _flat(array)
    return [values[start:stop] for start, stop in pairwise(offsets)]


def _flat(array: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """Values and row offsets (from 0) of a list column."""
    offsets = array.offsets.to_numpy()
    values = array.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]]
    return values, offsets - offsets[0]
