"""Columns of a cache as one Arrow table, decoded: what Polars and pandas take without a copy.

The columns of a float32 cache, whatever the cache stores (`schema.columns`), and NAMES. Values of a row are a list;
those of a node are J - 1 numbers for each position, and those of an entry follow support_count.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from shards.errors import OptionError
from shards.format import schema
from shards.format.encoding import codec
from shards.format.encoding.selection import Selection
from shards.format.plan import Plan
from shards.format.schema import Column
from shards.format.scores import Scores

NAMES = {
    "num_tokens": "tokens of the row",
    "num_positions": "response positions of the row",
    "prompt": "text before response_start",
    "response": "text from response_start on",
}
"""Columns that no shard has."""
OF_THE_INDEX = ("num_tokens", "num_positions", schema.PAIR_ID, schema.CHOSEN)
"""Columns that need no shard."""
ROWS_AT_A_TIME = 64
MEMORY_SHARE = 0.5
"""Of the free memory that a table may take: whoever reads it works with it."""
BYTES_PER_TOKEN_OF_TEXT = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plain:
    """A selection of columns that are read as they are stored."""

    names: Sequence[str]

    def columns(self, plan: Plan) -> tuple[Column, ...]:
        return tuple(column for column in plan.columns() if column.name in self.names)


def arrow_table(cache: Any, columns: Sequence[str], rows: Sequence[int] | None = None) -> pa.Table:
    """Some columns of a ShardCache, of these rows (default: all).

    Raises OptionError for a name that is not one of `known_columns`, a row out of range, or a table that is larger than
    the memory.
    """
    known = known_columns(cache.plan)
    if isinstance(columns, str) or not columns:
        raise OptionError(f"columns: expected a list of names out of {', '.join(known)}, got {columns!r}")
    for name in columns:
        if name not in known:
            raise OptionError(f"columns: expected names out of {', '.join(known)}, got {name!r}")
    numbers = np.arange(len(cache)) if rows is None else np.asarray(rows, dtype=np.int64).reshape(-1)
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(cache):
        raise OptionError(f"rows: expected numbers from 0 and under {len(cache)}, got {numbers.min()}..{numbers.max()}")
    _require_memory(cache, columns, numbers)
    fields = [pa.field(name, known[name]) for name in columns]
    if set(columns) <= set(OF_THE_INDEX):
        found = {name: getattr(cache.index, name)[numbers] for name in columns}
        return pa.table([pa.array(found[name], known[name]) for name in columns], schema=pa.schema(fields))
    batches = [
        pa.record_batch([found[name] for name in columns], schema=pa.schema(fields))
        for found in _parts(cache, columns, numbers, known)
    ]
    return pa.Table.from_batches(batches, pa.schema(fields))


def known_columns(plan: Plan) -> dict[str, pa.DataType]:
    """Name -> type of every column that can be asked for."""
    decoded = schema.columns(plan.roles, plan.pairs, "float32")
    extra_types = {
        "num_tokens": pa.int32(),
        "num_positions": pa.int32(),
        "prompt": pa.string(),
        "response": pa.string(),
    }
    return {column.name: column.arrow_type for column in decoded} | extra_types


def _parts(
    cache: Any, columns: Sequence[str], numbers: np.ndarray, known: dict[str, pa.DataType]
) -> Iterator[dict[str, pa.Array]]:
    """The columns of a few rows at a time."""
    levels = {column.name: column.level for column in schema.columns(cache.plan.roles, cache.plan.pairs, "float32")}
    plain = {name for name in columns if levels.get(name) in ("row", "token")}
    if {"prompt", "response", schema.RESPONSE_START} & set(columns):
        plain |= {schema.INPUT_IDS, schema.RESPONSE_START}  # a start is checked against its row's length
    if schema.SAMPLE_ID in columns:
        plain |= {schema.PAIR_ID, schema.CHOSEN}  # a name against both
    valued = [name for name in columns if levels.get(name) in ("position", "node", "entry")]
    for start in range(0, len(numbers), ROWS_AT_A_TIME):
        some = numbers[start : start + ROWS_AT_A_TIME]
        found: dict[str, Any] = {}
        if plain:
            stored = cache.read_columns(some, _Plain(names=sorted(plain)))
            found |= {name: _array([row[name] for row in stored], known[name]) for name in plain}
            found |= _texts(cache, stored, columns)
        if valued:
            found |= _values(cache, some, valued, known)
        for name in ("num_tokens", "num_positions"):
            found[name] = pa.array(getattr(cache.index, name)[some], pa.int32())
        yield found


def _texts(cache: Any, stored: Sequence[codec.Row], columns: Sequence[str]) -> dict[str, pa.Array]:
    if not {"prompt", "response"} & set(columns):
        return {}
    halves = []
    for row in stored:
        pieces, start = cache.token_texts.pieces(row[schema.INPUT_IDS]), row[schema.RESPONSE_START]
        halves.append(("".join(pieces[:start]), "".join(pieces[start:])))
    prompts, responses = zip(*halves, strict=True)
    return {"prompt": pa.array(prompts, pa.string()), "response": pa.array(responses, pa.string())}


def _values(cache: Any, rows: np.ndarray, names: Sequence[str], known: dict[str, pa.DataType]) -> dict[str, pa.Array]:
    """Decoded columns of position, node or entry."""
    plan = cache.plan
    roles = [role for role in plan.roles if any(name in _names_of_role(role) for name in names)]
    pairs = [pair for pair in plan.pairs if schema.tail_logpartition_column(pair) in names]
    wanted = {name for name in names if name.startswith("l1_distance_")}
    selection = Selection(
        roles=tuple(roles),
        tails=tuple(plan.roles) if pairs else tuple(roles),
        distances=tuple(n for n in schema.NEGATIVES if schema.l1_distance_column(n) in wanted),
        pairs=tuple(pairs),
        next_tokens=any(name.endswith("_next_logprob") for name in names),
        names=False,
    )
    tokens, scores = cache.read_joined([int(row) for row in rows], selection)
    decoded = [_flat(part) for part in scores.split([int(row.loss_mask.sum()) for row in tokens])]
    return {name: _array([np.ravel(part[name]) for part in decoded], known[name]) for name in names}


def _names_of_role(role: Any) -> set[str]:
    return {schema.logprobs_column(role), schema.next_logprob_column(role), schema.tail_logprob_column(role)}


def _flat(scores: Scores) -> dict[str, np.ndarray]:
    """Scores by the names of a float32 cache's columns."""
    return {
        schema.SUPPORT_COUNT: scores.support_count,
        schema.SUPPORT_IDS: scores.support_ids,
        **{schema.l1_distance_column(n): values for n, values in scores.l1_distance.items()},
        **{schema.logprobs_column(r): values for r, values in scores.logprobs.items()},
        **{schema.next_logprob_column(r): values for r, values in scores.next_logprob.items()},
        **{schema.tail_logprob_column(r): values for r, values in scores.tail_logprob.items()},
        **{schema.tail_logpartition_column(p): values for p, values in scores.tail_logpartition.items()},
    }


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """One value for each row: plain, or a list from an array."""
    if not pa.types.is_list(kind):
        return pa.array(values, kind)
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in values])]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(values), kind.value_type))


def _require_memory(cache: Any, columns: Sequence[str], numbers: np.ndarray) -> None:
    """Raise OptionError if the table would take more than half of the free memory."""
    index, plan = cache.index, cache.plan
    tokens, positions = int(index.num_tokens[numbers].sum()), int(index.num_positions[numbers].sum())
    entries = sum(entry.entries for entry in cache.manifest.entries) * len(numbers) / max(1, len(cache))
    counts = {"row": 4 * len(numbers), "token": tokens, "position": positions, "entry": entries}
    counts["node"] = positions * (len(plan.nodes) - 1)
    levels = {column.name: column.level for column in schema.columns(plan.roles, plan.pairs, "float32")}
    needed = sum(4 * counts[levels[name]] if name in levels else BYTES_PER_TOKEN_OF_TEXT * tokens for name in columns)
    free = psutil.virtual_memory().available * MEMORY_SHARE
    if needed > free:
        raise OptionError(
            f"columns: expected a table of at most {free / 1e9:,.1f} GB, half of the free memory, got about "
            f"{needed / 1e9:,.1f} GB; give fewer columns, or rows=range(...)"
        )
