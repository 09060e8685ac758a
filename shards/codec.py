"""Responses <-> record batches. Pure: no files.

`float32` values: a stored value is the float32 nearest to the computed one (relative error at most 2^-24). `compact`
values: `shards.compact` has their law and its errors. Ids, masks, counts and D_t (a float32) are exact in both.
"""

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from shards import compact, schema
from shards.errors import CacheDamaged, OptionError
from shards.manifest import Plan
from shards.schema import Column, Pair, Role
from shards.scores import Response, Scores

Row = Mapping[str, Any]


def encode(responses: Sequence[Response], plan: Plan, arrow_schema: pa.Schema) -> pa.RecordBatch:
    """The record batch that holds these rows; arrow_schema: the plan's, made once for all batches of a shard.

    Raises OptionError for values that the plan's codec cannot hold.
    """
    rows = [_stored(response, plan) for response in responses]
    arrays = []
    for column in plan.columns():
        values = [row[column.name] for row in rows]
        if column.level == "row":
            arrays.append(pa.array(values, column.arrow_type))
        else:
            arrays.append(_list_array([np.ravel(v) for v in values], column))
    return pa.RecordBatch.from_arrays(arrays, schema=arrow_schema)


def decode(
    batch: pa.RecordBatch, plan: Plan, roles: Iterable[Role] | None = None, pairs: Iterable[Pair] | None = None
) -> list[Response]:
    """The rows of a record batch, with the values of these roles and pairs only (all, unless given)."""
    roles, pairs = plan.roles if roles is None else tuple(roles), plan.pairs if pairs is None else tuple(pairs)
    return [decode_row(row, plan, roles, pairs) for row in split_rows(batch, plan.columns(roles, pairs))]


def split_rows(batch: pa.RecordBatch, table: Iterable[Column]) -> list[dict[str, Any]]:
    """The values of each row, column name -> flat array, or a plain value at level `row`."""
    columns = {column.name: _rows(batch.column(column.name)) for column in table}
    return [{name: rows[i] for name, rows in columns.items()} for i in range(batch.num_rows)]


def decode_row(row: Row, plan: Plan, roles: Iterable[Role], pairs: Iterable[Pair]) -> Response:
    """A row of `split_rows`, with the values of these roles and pairs; arrays may be read-only views."""
    roles, pairs = tuple(roles), tuple(pairs)
    scores = _float32_scores if plan.values == "float32" else _compact_scores
    return Response(
        sample_id=row[schema.SAMPLE_ID],
        pair_id=row[schema.PAIR_ID],
        chosen=row[schema.CHOSEN],
        response_start=row[schema.RESPONSE_START],
        input_ids=row[schema.INPUT_IDS],
        loss_mask=row[schema.LOSS_MASK],
        scores=scores(row, plan, roles, pairs),
    )


def decode_tails(columns: Row, plan: Plan) -> dict[Role, np.ndarray]:
    """Every role's tail log-prob, (N,) nats, of the flat columns that `Plan.tail_columns` names."""
    if plan.values == "float32":
        return {role: columns[schema.tail_logprob_column(role)] for role in plan.roles}
    codes = _codes(columns, schema.tail_code_column, plan)
    return {role: compact.from_tail_codes(code_N) for role, code_N in codes.items()}


def _stored(response: Response, plan: Plan) -> dict[str, Any]:
    """Column name -> value or array."""
    scores = response.scores
    per_value = _float32_columns if plan.values == "float32" else _compact_columns
    return {
        **{field: getattr(response, field) for field in Response.__slots__ if field != "scores"},
        schema.SUPPORT_COUNT: scores.support_count,
        **{schema.l1_distance_column(n): v for n, v in scores.l1_distance.items()},
        **dict(per_value(scores, plan)),
    }


def _float32_columns(scores: Scores, plan: Plan) -> Iterator[tuple[str, np.ndarray]]:
    yield schema.SUPPORT_IDS, scores.support_ids
    for r in scores.logprobs:
        yield schema.logprobs_column(r), scores.logprobs[r]
        yield schema.next_logprob_column(r), scores.next_logprob[r]
        yield schema.tail_logprob_column(r), scores.tail_logprob[r]
    for p, partition in scores.tail_logpartition.items():
        yield schema.tail_logpartition_column(p), partition


def _compact_columns(scores: Scores, plan: Plan) -> Iterator[tuple[str, np.ndarray]]:
    unit_N = compact.units(scores.l1_distance[plan.unit_negative].astype(np.float32))
    unit_M = np.repeat(unit_N, scores.support_count)
    yield from _split(schema.SUPPORT_GAPS, compact.to_gaps(scores.support_ids))
    kept = {role: compact.to_codes(logprobs_M, unit_M) for role, logprobs_M in scores.logprobs.items()}
    following = {role: compact.to_codes(logprob_N, unit_N) for role, logprob_N in scores.next_logprob.items()}
    tails = {role: compact.to_tail_codes(tail_N) for role, tail_N in scores.tail_logprob.items()}
    named = ((schema.codes_column, kept), (schema.next_code_column, following), (schema.tail_code_column, tails))
    for column, codes in named:
        for role, values in compact.to_differences(codes).items():
            yield from _split(column(role), values)
    empty_N = np.isneginf(scores.tail_logprob["reference"])
    for pair, partition_NI in scores.tail_logpartition.items():
        yield from _split(schema.tail_partition_codes_column(pair), compact.to_partition_codes(partition_NI, empty_N))


def _split(name: str, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    yield from zip((schema.low(name), schema.high(name)), compact.split(values), strict=True)


def _float32_scores(row: Row, plan: Plan, roles: Sequence[Role], pairs: Sequence[Pair]) -> Scores:
    return Scores(
        support_count=row[schema.SUPPORT_COUNT],
        support_ids=row[schema.SUPPORT_IDS],
        logprobs={r: row[schema.logprobs_column(r)] for r in roles},
        next_logprob={r: row[schema.next_logprob_column(r)] for r in roles},
        tail_logprob={r: row[schema.tail_logprob_column(r)] for r in roles},
        l1_distance=_distances(row, roles),
        tail_logpartition={p: row[schema.tail_logpartition_column(p)].reshape(-1, len(plan.nodes) - 1) for p in pairs},
    )


def _compact_scores(row: Row, plan: Plan, roles: Sequence[Role], pairs: Sequence[Pair]) -> Scores:
    count_N = row[schema.SUPPORT_COUNT]
    unit_N = compact.units(row[schema.l1_distance_column(plan.unit_negative)])
    kept, following = (_codes(row, column, plan) for column in (schema.codes_column, schema.next_code_column))
    tails = decode_tails(row, plan)
    unit_M, empty_N = np.repeat(unit_N, count_N), np.isneginf(tails["reference"])
    return Scores(
        support_count=count_N,
        support_ids=compact.from_gaps(_joined(row, schema.SUPPORT_GAPS)),
        logprobs={r: compact.from_codes(kept[r], unit_M) for r in roles},
        next_logprob={r: compact.from_codes(following[r], unit_N) for r in roles},
        tail_logprob={r: tails[r] for r in roles},
        l1_distance=_distances(row, roles),
        tail_logpartition={
            p: compact.from_partition_codes(
                _joined(row, schema.tail_partition_codes_column(p)).reshape(-1, len(plan.nodes) - 1), empty_N
            )
            for p in pairs
        },
    )


def _codes(row: Row, column: Callable[[Role], str], plan: Plan) -> dict[Role, np.ndarray]:
    return compact.from_differences({role: _joined(row, column(role)) for role in plan.roles})


def _joined(row: Row, name: str) -> np.ndarray:
    return compact.join(row[schema.low(name)], row[schema.high(name)])


def _distances(row: Row, roles: Sequence[Role]) -> dict[Role, np.ndarray]:
    return {n: row[schema.l1_distance_column(n)] for n in schema.NEGATIVES if n in roles}


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
