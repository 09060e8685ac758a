"""How reading, opening, checking and finishing a cache grow with its shards and rows."""

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from benchmarks.loading.many import repeated_responses, write_indexed, write_shards_of
from benchmarks.loading.measure import Loader
from benchmarks.loading.options import LoadingOptions
from shards.cache import ShardCache
from shards.errors import AlignDistilError
from shards.format.finishing import Findings, finished
from shards.verify.__main__ import verify

GLOBAL_BATCHES = 4
"""Batches of --global_batch_size shuffled rows to read from each cache in each round."""
SHORT = 16
"""Tokens of a response in shards that are checked and finished: few, to measure the cost of a shard, not of values."""


def scale(options: LoadingOptions) -> dict[str, Any]:
    """All measurements; the caches are made in --out and removed again."""
    folder = Path(options.out) / "scale"
    shutil.rmtree(folder, ignore_errors=True)
    found = {
        "reading": reading(folder / "reading", options),
        "checking": checking(folder / "checking", options),
        "opening": opening(folder / "opening", options),
    }
    shutil.rmtree(folder)
    return found


def reading(folder: Path, options: LoadingOptions) -> dict[int, dict[str, float]]:
    """Shuffled rows per second, from the file to the tensors of micro-batches: the same rows in ever more shards."""
    responses = repeated_responses(options, options.shard_rows)
    for shards in tqdm(options.shards, desc="caches of many shards", unit="cache"):
        write_shards_of(folder / str(shards), options, responses, shards)
    del responses
    loaders = {shards: Loader(folder / str(shards), options) for shards in options.shards}
    size = options.global_batch_size // options.micro_batch_size * GLOBAL_BATCHES
    rows = min(GLOBAL_BATCHES * options.global_batch_size, options.shard_rows)
    wall: dict[int, list[float]] = {shards: [] for shards in loaders}
    cpu: dict[int, list[float]] = {shards: [] for shards in loaders}
    for epoch in tqdm(range(options.repeats + 1), desc="reading", unit="round"):  # the first round touches the files
        for shards, loader in loaders.items():
            loader.sampler.set_epoch(epoch)
            batches = list(islice(loader.sampler, size))
            seconds, cpu_seconds = clocked(lambda loader=loader, batches=batches: loader.read(batches))
            wall[shards].append(seconds)
            cpu[shards].append(cpu_seconds)
    return {
        shards: {
            "rows_per_second": rows / statistics.median(wall[shards][1:]),
            "rows_per_cpu_second": rows / statistics.median(cpu[shards][1:]),
        }
        for shards in loaders
    }


def checking(folder: Path, options: LoadingOptions) -> dict[int, dict[str, float]]:
    """Processor seconds of verifying, finishing and opening shards of one short row."""
    short = replace(options, length=SHORT, prompt=SHORT)
    responses = repeated_responses(short, max(options.shards))
    for shards in tqdm(options.shards, desc="caches of one-row shards", unit="cache"):
        write_shards_of(folder / str(shards), short, responses[:shards], shards)
    return {
        shards: {name: clocked(step)[1] for name, step in _checks(folder / str(shards)).items()}
        for shards in options.shards
    }


def _checks(folder: Path) -> Mapping[str, Callable[[], object]]:
    plan = ShardCache(folder).plan

    def verified() -> None:
        for fault in verify(folder):
            raise AlignDistilError(str(fault))

    def finish() -> None:
        findings = Findings.nothing(plan)
        for number in range(len(plan.shards)):
            findings.read_back(folder, plan, number)
        finished(folder, plan, [findings]).to_json()

    return {"verify": verified, "finish": finish, "open": lambda: ShardCache(folder).index}


def opening(folder: Path, options: LoadingOptions) -> dict[int, dict[str, float]]:
    """Seconds and memory of opening, in a separate process, for caches of an index and empty shards."""
    found = {}
    for rows in tqdm(options.index_rows, desc="opening", unit="cache"):
        shards = write_indexed(folder, options, rows)
        sizes = {path.name: path.stat().st_size / rows for path in folder.iterdir() if path.stat().st_size}
        runs = [_opened(folder) for _ in range(options.repeats)]
        medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        found[rows] = {"shards": shards, **medians, "disk_bytes_per_row": sum(sizes.values())}
        shutil.rmtree(folder)
    return found


def _opened(folder: Path) -> dict[str, float]:
    command: Sequence[str] = [sys.executable, "-m", "benchmarks.loading.opening", str(folder)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def clocked(step: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    began, began_cpu = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - began, time.process_time() - began_cpu
