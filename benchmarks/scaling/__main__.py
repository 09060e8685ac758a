"""python -m benchmarks.scaling: what a cache of millions of rows costs, on paper and on caches without content.

It prints the table that follows from the assumptions. `--measure` takes paper, shuffle, growth and reading.
results.json, scaling.md and growth.svg are written to --out.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import parse
from benchmarks.machine import processor, versions
from benchmarks.plots import require_matplotlib
from benchmarks.scaling.growth import growth, read_rows
from benchmarks.scaling.options import ScalingOptions
from benchmarks.scaling.paper import sections
from benchmarks.scaling.report import page
from benchmarks.scaling.shuffling import measured
from shards.cli.command import run_command


def run(options: ScalingOptions, command: str) -> dict[str, Any]:
    """Compute and measure what was asked for, and write it."""
    if "growth" in options.measure:
        require_matplotlib()
    torch.set_num_threads(1)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    known = {"command": command, "machine": processor(), "versions": versions(("numpy", "pyarrow", "torch"))}
    results: dict[str, Any] = {"settings": {**asdict(options), **known}}
    works = {"paper": sections, "shuffle": measured, "growth": growth, "reading": read_rows}
    for name, work in works.items():
        if name in options.measure:
            results[name] = work(options)
    if "growth" in results:
        from benchmarks.scaling.plot import draw

        draw(results["growth"], out / "growth.svg")
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "scaling.md").write_text(page(results) + "\n")
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    options, command = parse(ScalingOptions, "benchmarks.scaling", __doc__, arguments)
    print(page(run(options, command)))


if __name__ == "__main__":
    run_command(main)
