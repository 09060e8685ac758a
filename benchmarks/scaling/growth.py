"""How opening and order grow with rows, shards and ranks, on caches of a real plan and index without content."""

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from benchmarks.loading.many import ROW_POSITIONS, SHARD_ROWS, write_indexed
from benchmarks.loading.options import LoadingOptions
from benchmarks.loading.scale import clocked, reading
from benchmarks.scaling.options import ScalingOptions
from student.data.order import GlobalBatchSampler, Window
from student.data.table import ShardTable
from student.data.uses import find_uses

MILLION = 1_000_000
TIMED_ROWS = 200_000
"""Rows of an epoch that a rank asks for, to measure rows a second."""


def growth(options: ScalingOptions) -> dict[str, list[dict[str, Any]]]:
    """Axis -> a point for each size."""
    folder = Path(options.out) / "opened"
    rows = {rows: (rows, SHARD_ROWS, 1) for rows in options.rows}
    shards = {shards: (MILLION, -(-MILLION // shards), 1) for shards in options.shards}
    ranks = {ranks: (MILLION, SHARD_ROWS, ranks) for ranks in options.ranks}
    axes = {"rows": rows, "shards": shards, "ranks": ranks}
    return {
        axis: [
            {"value": value, **_opening(folder, options, *sizes[:2]), **_order(options, *sizes)}
            for value, sizes in tqdm(points.items(), desc=axis, unit="cache")
        ]
        for axis, points in axes.items()
        if axis in options.axes
    }


def read_rows(options: ScalingOptions) -> dict[int, dict[str, float]]:
    """Rows a second of a student's reader: the same short rows in ever more files."""
    loading = LoadingOptions(
        shards=options.shards,
        shard_rows=options.read_rows,
        length=16,
        prompt=16,
        repeats=options.repeats,
        out=options.out,
    )
    folder = Path(options.out) / "read"
    shutil.rmtree(folder, ignore_errors=True)
    found = reading(folder, loading)
    shutil.rmtree(folder)
    return found


def _opening(folder: Path, options: ScalingOptions, rows: int, shard_rows: int) -> dict[str, float]:
    """Of a cache of an index and empty shards, each time in a process of its own: seconds, and bytes a row."""
    shutil.rmtree(folder, ignore_errors=True)
    shards = write_indexed(folder, LoadingOptions(), rows, shard_rows)
    command = [sys.executable, "-m", "benchmarks.loading.opening", str(folder)]
    runs = [
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(options.repeats)
    ]
    sizes = {f"{name}_bytes": (folder / name).stat().st_size for name in ("manifest.json", "index.arrow")}
    shutil.rmtree(folder)
    return {"shards": shards, **sizes, **{name: statistics.median(run[name] for run in runs) for name in runs[0]}}


def _order(options: ScalingOptions, rows: int, shard_rows: int, ranks: int) -> dict[str, float]:
    """Processor seconds of what a rank does for its order."""
    lengths = np.random.default_rng(options.seed).integers(20, 2 * ROW_POSITIONS, rows).astype(np.int32)
    ends = np.append(np.arange(shard_rows, rows, shard_rows), rows)
    none = np.zeros(len(ends), np.int64)
    table = ShardTable(ends=ends, cache=none, number=np.arange(len(ends)), size=none + 1)

    def sampler(width: int | None) -> GlobalBatchSampler:
        at_once = max(1, options.global_batch_size // ranks)
        micro = min(8, at_once)
        return GlobalBatchSampler(
            lengths,
            seed=options.seed,
            micro_batch_size=micro,
            accumulation_steps=at_once // micro,
            world_size=ranks,
            rank=0,
            window=None if width is None else Window(width=width, ends=ends),
        )

    def middle() -> None:
        made = sampler(options.shuffle_window)
        made.skips = len(made) // 2
        next(items for items in made if items)

    steps: dict[str, Callable[[], object]] = {
        "permutation": lambda: next(iter(sampler(None))),
        "window": lambda: next(iter(sampler(options.shuffle_window))),
        "resume in the middle": middle,
        "uses of all shards": lambda: find_uses(sampler(options.shuffle_window), table, range(ranks)),
    }
    found = {name: statistics.median(clocked(step)[1] for _ in range(options.repeats)) for name, step in steps.items()}
    batches = iter(sampler(options.shuffle_window))
    next(batches)
    served = sum(len(items) for items in islice(batches, 1)) * ranks
    count = min(rows, TIMED_ROWS) // served - 2
    seconds = clocked(lambda: sum(1 for _ in islice(batches, count)))[1]
    return found | {"rows_per_second": count * served / seconds}
