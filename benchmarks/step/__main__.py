"""python -m benchmarks.step: compares a student's step with plain fine-tuning and with live models.

Random weights and a cache of random sequences, made on the spot. Writes results.json, results.md and, with --growth, a
picture into --out.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import parse, quiet
from benchmarks.machine import processor, versions
from benchmarks.step.bench import Bench, make_bench
from benchmarks.step.growth import growth, require_sizes
from benchmarks.step.measure import counted, interleaved, loader_wait, measured_bytes, medians
from benchmarks.step.options import StepOptions
from benchmarks.step.report import section
from benchmarks.step.steps import BUILD, Steps, why_no_liger
from shards.cli.command import run_command

RESULTS_FILE, REPORT_FILE, PLOT_FILE = "results.json", "results.md", "growth.svg"
WORKERS = (0, 1)
VERSIONS = ("torch", "transformers", "numpy")


def run(options: StepOptions, command: str) -> dict[str, Any]:
    """All measurements; writes results.json and results.md, and returns the content of the first."""
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    require_sizes(options)
    bench = make_bench(options)
    steps, device = Steps(bench), bench.trainer.model.device
    whole, losses = steps.whole(), steps.losses()
    seconds = interleaved(whole, steps.clear, repeats=options.repeats, device=device)
    loss_seconds = interleaved(losses, steps.clear, repeats=options.repeats, device=device)
    results: dict[str, Any] = {
        "settings": {"command": command, **settings(bench, options)},
        "seconds": medians(seconds, device),
        "clock": {name: [min(found), max(found)] for name, found in seconds["clock"].items()},
        "loss_seconds": medians(loss_seconds, device),
        "step_bytes": {name: measured_bytes(steps, work)["peak"] for name, work in whole.items() if name != BUILD},
        "loss_bytes": {name: measured_bytes(steps, work) for name, work in losses.items()},
        "loader": {str(workers): loader(bench, workers) for workers in WORKERS},
        "build": {"seconds": bench.build_seconds[counted(device)], "rows": options.rows * options.loader_batches},
    }
    if options.growth:
        from benchmarks.step.plot import draw  # matplotlib is an extra

        results["growth"] = growth(options)
        draw(results, out / PLOT_FILE)
    (out / RESULTS_FILE).write_text(json.dumps(results, indent=1) + "\n")
    (out / REPORT_FILE).write_text(section(results, PLOT_FILE))
    return results


def loader(bench: Bench, workers: int) -> dict[str, float]:
    """The trainer's own loader over the cache, with a step of the trainer for every batch."""
    trainer = bench.trainer
    trainer.args.dataloader_num_workers = workers

    def step(batch: dict[str, Any]) -> None:
        inputs = trainer._prepare_inputs(batch)
        trainer.model.zero_grad(set_to_none=True)
        trainer.compute_loss(trainer.model, inputs, num_items_in_batch=inputs["num_items"]).backward()

    return loader_wait(iter(trainer.get_train_dataloader()), step, trainer.model.device)


def settings(bench: Bench, options: StepOptions) -> dict[str, Any]:
    """The settings and the machine."""
    data, device = bench.trainer.train_dataset, bench.trainer.model.device
    scores = data.scores(range(options.rows))
    names = ("rows", "sequence_length", "prompt_tokens", "hidden_size", "layers", "heads", "vocabulary", "dtype")
    threads = torch.get_num_threads()
    cpu = f"{processor()}, {threads} thread{'s' if threads > 1 else ''}"
    return {
        **{name: getattr(options, name) for name in (*names, "chunk_positions", "repeats")},
        "parameters": bench.trainer.model.num_parameters(),
        "support_mean": scores.num_entries / scores.num_positions,
        "positions": scores.num_positions,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "versions": versions(VERSIONS),
        "seconds_of": f"the {counted(device)}",
        "why_no_liger": why_no_liger(device),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    options, command = parse(StepOptions, "benchmarks.step", __doc__, arguments)
    quiet()
    results = run(options, command)
    print(f"\n{section(results, PLOT_FILE)}\n{Path(options.out) / RESULTS_FILE}, {REPORT_FILE}: written")


if __name__ == "__main__":
    run_command(main)
