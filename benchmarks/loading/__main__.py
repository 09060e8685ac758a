"""python -m benchmarks.loading: measures how fast a cache is read, decoded and composed.

It makes a synthetic cache for every --rows_per_batch in --out, measures them interleaved, then caches of many shards
and of many rows, and writes results.json and loading.md there. `--measure scale` only measures and prints the tables of
many shards and rows.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import parse
from benchmarks.loading.measure import everything
from benchmarks.loading.options import LoadingOptions
from benchmarks.loading.report import page
from benchmarks.loading.scale import scale
from benchmarks.loading.scale_report import tables
from benchmarks.loading.synthetic import make_responses, write_cache
from benchmarks.machine import processor, versions
from shards.cli.command import run_command

VERSIONS = ("numpy", "pyarrow", "zstandard", "torch")


def run(options: LoadingOptions, command: str) -> dict[str, Any]:
    """Make the caches, measure them, write the results."""
    torch.set_num_threads(1)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    settings = {**asdict(options), "command": command, "machine": processor(), "versions": versions(VERSIONS)}
    results = {"settings": settings}
    if "speed" in options.measure:
        results |= speed(out, options)
    if "scale" in options.measure:
        results["scale"] = scale(options)
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "loading.md").write_text(page(results) + "\n")
    return results


def speed(out: Path, options: LoadingOptions) -> dict[str, Any]:
    responses = list(make_responses(options))
    folders = {rows: out / f"rows-per-batch-{rows}" for rows in options.rows_per_batch}
    for rows, folder in folders.items():
        write_cache(folder, options, responses, rows)
    del responses
    return everything(folders, options)


def main(arguments: Sequence[str] | None = None) -> None:
    options, command = parse(LoadingOptions, "benchmarks.loading", __doc__, arguments)
    results = run(options, command)
    if "scale" in results:
        print(tables(results["scale"], results["settings"]))
    print(f"{options.out}: results.json and loading.md are written")


if __name__ == "__main__":
    run_command(main)
