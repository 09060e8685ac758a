"""Caches of many shards and of many rows: complete ones whose rows repeat a few responses, and index-only ones."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.loading.options import LoadingOptions
from benchmarks.loading.synthetic import index_of, make_plan, make_responses, write_planned
from shards.format.index import RowIndex
from shards.format.manifest import MANIFEST_FILE, Manifest, ShardEntry
from shards.format.plan import ShardPlan, shard_file
from shards.format.scores import Response
from shards.format.writer import write_index, write_json

DISTINCT = 64
"""Responses that the rows of a cache of many shards repeat, under different names."""
SHARD_ROWS, ROW_POSITIONS = 218, 300
"""Of a shard of 65,536 response tokens, where responses have 300."""


def repeated_responses(options: LoadingOptions, rows: int) -> list[Response]:
    """This many rows, which share the scores of a few."""
    some = list(make_responses(replace(options, rows=min(DISTINCT, rows))))
    return [replace(some[row % len(some)], sample_id=f"{row}/chosen", pair_id=row) for row in range(rows)]


def cut(responses: Sequence[Response], shards: int) -> tuple[ShardPlan, ...]:
    """The rows in this many shards, as evenly as possible."""
    ends = np.linspace(0, len(responses), shards + 1).round().astype(int).tolist()
    return planned(np.array([response.scores.num_positions for response in responses]), ends[:-1])


def planned(positions: np.ndarray, first_rows: Sequence[int]) -> tuple[ShardPlan, ...]:
    """The shards that begin with these rows, for rows of this many positions."""
    sums = np.add.reduceat(positions, first_rows, dtype=np.int64).tolist()
    counts = np.diff([*first_rows, len(positions)]).tolist()
    return tuple(
        ShardPlan(file=shard_file(i), first_row=first_row, rows=counts[i], positions=sums[i])
        for i, first_row in enumerate(first_rows)
    )


def write_shards_of(folder: Path, options: LoadingOptions, responses: list[Response], shards: int) -> None:
    """A complete cache of these rows, one per record batch, in this many shards."""
    folder.mkdir(parents=True)
    index_sha256 = write_index(folder, index_of(responses))
    write_planned(folder, make_plan(options, cut(responses, shards), 1, index_sha256), responses)


def write_indexed(folder: Path, options: LoadingOptions, rows: int, shard_rows: int = SHARD_ROWS) -> int:
    """Write what opening a cache of this many rows reads: manifest, index, empty shards. Returns how many shards."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(options.seed)
    positions = generator.integers(1, 2 * ROW_POSITIONS, rows).astype(np.int32)
    index = RowIndex(
        pair_id=np.arange(rows) // 2,
        chosen=np.arange(rows) % 2 == 0,
        num_tokens=positions + generator.integers(20, 400, rows).astype(np.int32),
        num_positions=positions,
    )
    shards = planned(positions, range(0, rows, shard_rows))
    plan = make_plan(options, shards, 1, write_index(folder, index))
    for shard in shards:
        (folder / shard.file).touch()
    entries = tuple(ShardEntry(file=shard.file, entries=0, bytes=0, sha256="0" * 64) for shard in shards)
    manifest = Manifest(plan=plan, entries=entries, statistics={"support_count": {"mean": 0.0}})
    write_json(folder, MANIFEST_FILE, manifest.to_json())
    return len(shards)
