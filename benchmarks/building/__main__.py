"""python -m benchmarks.building: what a build costs beyond three bare forward passes over the same batches.

Random weights and random data, made on the spot. Writes results.json, building.md and building.svg into --out.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.building.bench import Works, make_bench
from benchmarks.building.options import BuildingOptions
from benchmarks.building.report import AXES, section
from benchmarks.command import parse, quiet
from benchmarks.machine import processor, versions
from benchmarks.plots import require_matplotlib
from benchmarks.step.measure import counted, interleaved, medians
from shards.cli.command import run_command

RESULTS_FILE, REPORT_FILE, PLOT_FILE = "results.json", "building.md", "building.svg"
VERSIONS = ("torch", "transformers", "numpy", "pyarrow")


def run(options: BuildingOptions, command: str) -> dict[str, Any]:
    """All measurements; writes results.json and returns its content."""
    if options.growth:
        require_matplotlib()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    main_point = measure(options)
    results = {
        "settings": {"command": command, **main_point.pop("settings")},
        **main_point,
        "growth": {axis: [_grown(axis, options, factor) for factor in sorted(options.growth)] for axis in AXES}
        if options.growth
        else {},
    }
    (out / RESULTS_FILE).write_text(json.dumps(results, indent=1) + "\n")
    picture = PLOT_FILE if options.growth else None
    (out / REPORT_FILE).write_text(section(results, picture))
    if options.growth:
        from benchmarks.building.plot import draw

        draw(results, out / PLOT_FILE)
    return results


def measure(options: BuildingOptions) -> dict[str, Any]:
    """Seconds of each work, bytes per position, and the machine and versions."""
    bench = make_bench(options)
    works, device = Works(bench), bench.scorer.device
    works.write()
    found = interleaved(works.all(), lambda: None, repeats=options.repeats, device=device)
    positions = bench.plan.positions
    threads = torch.get_num_threads()
    names = ("rows", "sequence_length", "prompt_tokens", "hidden_size", "layers", "vocabulary", "dtype", "repeats")
    return {
        "seconds": medians(found, device),
        "bytes": (bench.folder / bench.plan.shards[0].file).stat().st_size / positions,
        "settings": {
            **{name: getattr(options, name) for name in names},
            "parameters": works.models[0].model.num_parameters(),
            "support_mean": sum(response.scores.num_entries for response in works.responses) / positions,
            "machine": torch.cuda.get_device_name(device)
            if device.type == "cuda"
            else f"{processor()}, {threads} thread{'s' if threads > 1 else ''}",
            "device_type": device.type,
            "versions": versions(VERSIONS),
            "seconds_of": f"the {counted(device)}",
        },
    }


def _grown(axis: str, base: BuildingOptions, factor: float) -> dict[str, Any]:
    value = max(1, round(getattr(base, axis) * factor))
    changed = {axis: value, "out": str(Path(base.out) / "growth")}
    if axis == "sequence_length":
        changed["prompt_tokens"] = max(1, base.prompt_tokens * value // base.sequence_length)
    if axis == "prompt_tokens":
        value = changed[axis] = min(value, base.sequence_length - 1)
    options = replace(base, **changed)
    found = measure(options)
    return {"value": value, "seconds": found["seconds"], "bytes": found["bytes"]}


def main(arguments: Sequence[str] | None = None) -> None:
    options, command = parse(BuildingOptions, "benchmarks.building", __doc__, arguments)
    quiet()
    results = run(options, command)
    print(f"\n{section(results)}\n{options.out}: {RESULTS_FILE} and {REPORT_FILE} are written")


if __name__ == "__main__":
    run_command(main)
