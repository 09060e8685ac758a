"""Encodes responses as record batches, and decodes them. Pure: no files.

`float32` values: the stored value is the float32 nearest to the computed one (relative error at most 2^-24).
`compact` values: see `compact` for rule and errors. Ids, masks, counts and D_t (a float32) are exact in both.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from shards.errors import OptionError
from shards.format import schema
from shards.format.encoding import compact
from shards.format.encoding.arrays import Flat, flatten
from shards.format.encoding.selection import Selection, leaning
from shards.format.plan import Plan
from shards.format.schema import Column, Pair, Role
from shards.format.scores import Response, Scores

Row = Mapping[str, Any]


def encode(responses: Sequence[Response], plan: Plan, arrow_schema: pa.Schema) -> pa.RecordBatch:
    """The record batch of these rows; arrow_schema: the plan's, built once for all batches of a shard.

    Raises OptionError for values that the plan's codec cannot represent.
    """
    rows = [_encodable(response, plan) for response in responses]
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
    """The rows of a record batch, with the values of these roles and pairs only (default: all)."""
    selection = Selection.everything(plan, roles, pairs)
    rows = split_rows(flatten(batch), selection.columns(plan))
    return responses(rows, decode_scores(rows, plan, selection))


def split_rows(columns: Mapping[str, Flat], table: Iterable[Column]) -> list[dict[str, Any]]:
    """The values of each row, column name -> flat array, or a plain value for level `row`."""
    split = {column.name: _rows(columns[column.name]) for column in table}
    return [dict(zip(split, values, strict=True)) for values in zip(*split.values(), strict=True)]


def responses(rows: Sequence[Row], scores: Scores) -> list[Response]:
    """Rows of `split_rows` as Responses; scores: of all of them. Arrays are views, maybe read-only."""
    plain = [name for name in Response.__slots__ if name != "scores"]
    parts = scores.split([len(row[schema.SUPPORT_COUNT]) for row in rows])
    return [Response(**{name: row[name] for name in plain}, scores=part) for row, part in zip(rows, parts, strict=True)]


def decode_scores(rows: Sequence[Row], plan: Plan, selection: Selection) -> Scores:
    """The scores of rows of `split_rows`, concatenated; arrays may be read-only views.

    Decode many rows at once: that takes little longer than one row, because the cost is in the calls, not in the
    values.
    """
    columns = rows[0]
    if len(rows) > 1:
        table = [column for column in selection.columns(plan) if column.level in ("position", "node", "entry")]
        columns = {column.name: np.concatenate([row[column.name] for row in rows]) for column in table}
    if plan.values == "float32":
        return _float32_scores(columns, plan, selection)
    return _compact_scores(columns, plan, selection, [len(row[schema.low(schema.SUPPORT_GAPS)]) for row in rows])


def decode_tails(columns: Row, plan: Plan, roles: Sequence[Role] | None = None) -> dict[Role, np.ndarray]:
    """Tail log-probs of these roles (default: all), (N,) nats, from flat columns; see `Plan.tail_columns`."""
    roles = plan.roles if roles is None else roles
    if plan.values == "float32":
        return {role: columns[schema.tail_logprob_column(role)] for role in roles}
    codes = _codes(columns, schema.tail_code_column, plan, roles)
    return {role: compact.from_tail_codes(codes[role]) for role in roles}


def decode_next(columns: Row, plan: Plan, roles: Sequence[Role]) -> dict[Role, np.ndarray]:
    """Log-probs of the actual next tokens under these roles, (N,) nats, from flat columns; see `Plan.next_columns`.

    Nothing of the kept tokens is read for them.
    """
    if plan.values == "float32":
        return {role: columns[schema.next_logprob_column(role)] for role in roles}
    unit_N = compact.units(columns[schema.l1_distance_column(plan.unit_negative)])
    codes = _codes(columns, schema.next_code_column, plan, roles)
    return {role: compact.from_codes(codes[role], unit_N) for role in roles}


def _encodable(response: Response, plan: Plan) -> dict[str, Any]:
    try:
        return stored(response, plan)
    except OptionError as exc:
        raise OptionError(f"{response.sample_id}: {exc}") from exc


def stored(response: Response, plan: Plan) -> dict[str, Any]:
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


def _float32_scores(columns: Row, plan: Plan, selection: Selection) -> Scores:
    following = selection.roles if selection.next_tokens else ()
    return Scores(
        support_count=columns[schema.SUPPORT_COUNT],
        support_ids=columns[schema.SUPPORT_IDS],
        logprobs={r: columns[schema.logprobs_column(r)] for r in selection.roles},
        next_logprob={r: columns[schema.next_logprob_column(r)] for r in following},
        tail_logprob=decode_tails(columns, plan, selection.tails),
        l1_distance=_distances(columns, selection),
        tail_logpartition={
            p: columns[schema.tail_logpartition_column(p)].reshape(-1, len(plan.nodes) - 1) for p in selection.pairs
        },
    )


def _compact_scores(columns: Row, plan: Plan, selection: Selection, entries_R: Sequence[int]) -> Scores:
    """For concatenated rows with entries_R kept tokens each."""
    count_N, roles = columns[schema.SUPPORT_COUNT], selection.roles
    unit_N = compact.units(columns[schema.l1_distance_column(plan.unit_negative)])
    unit_M = np.repeat(unit_N, count_N)
    kept = _codes(columns, schema.codes_column, plan, roles)
    following = _codes(columns, schema.next_code_column, plan, roles) if selection.next_tokens else {}
    return Scores(
        support_count=count_N,
        support_ids=compact.from_gaps(_joined(columns, schema.SUPPORT_GAPS), entries_R),
        logprobs={r: compact.from_codes(kept[r], unit_M) for r in roles},
        next_logprob={r: compact.from_codes(following[r], unit_N) for r in roles if r in following},
        tail_logprob=decode_tails(columns, plan, selection.tails),
        l1_distance=_distances(columns, selection),
        tail_logpartition=_compact_partitions(columns, plan, selection),
    )


def _compact_partitions(columns: Row, plan: Plan, selection: Selection) -> dict[Pair, np.ndarray]:
    name = schema.tail_code_column("reference")
    empty_N = _joined(columns, name) == 0
    return {
        pair: compact.from_partition_codes(
            _joined(columns, schema.tail_partition_codes_column(pair)).reshape(-1, len(plan.nodes) - 1), empty_N
        )
        for pair in selection.pairs
    }


def _codes(columns: Row, column: Callable[[Role], str], plan: Plan, roles: Sequence[Role]) -> dict[Role, np.ndarray]:
    return compact.from_differences({role: _joined(columns, column(role)) for role in leaning(roles, plan)})


def _joined(columns: Row, name: str) -> np.ndarray:
    return compact.join(columns[schema.low(name)], columns[schema.high(name)])


def _distances(columns: Row, selection: Selection) -> dict[Role, np.ndarray]:
    return {n: columns[schema.l1_distance_column(n)] for n in selection.distances}


def _list_array(values: Sequence[np.ndarray], column: Column) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int64)
    if offsets[-1] > np.iinfo(np.int32).max:
        raise OptionError(f"rows_per_batch: expected record batches of under 2^31 values, got {offsets[-1]:,}")
    dtype = column.value_type.to_pandas_dtype()
    flat = pa.array(np.concatenate(values).astype(dtype, copy=False), column.value_type)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)


def _rows(column: Flat) -> list:
    values, offsets = column
    if offsets is None:
        return values.tolist()
    if isinstance(values, bytes):
        return [values[start:stop].decode() for start, stop in pairwise(offsets.tolist())]
    return [values[start:stop] for start, stop in pairwise(offsets.tolist())]
