"""What came out, in words. Pure functions of results.json."""

import math
from collections.abc import Mapping
from typing import Any

from benchmarks.step.steps import BUILD, DENSE, LIGER, ONLINE, SPARSE, TWICE

NAMES = {
    SPARSE: "sparse, from the cache",
    TWICE: "the same, output layer called as a module (logits twice)",
    DENSE: "dense cross-entropy of transformers",
    LIGER: "Liger's fused cross-entropy",
    ONLINE: "online: live dpo and reverse models, dense reverse KL",
}
GOALS = {
    "to_dense": ("a sparse step over a dense one", 0.85),
    "to_online": ("a sparse step over an online one", 0.25),
    "loss_memory": ("memory of loss and output layer over the dense loss's, without the gradients left behind", 0.1),
    "loader_share": ("share of a step that waits for the loader (one worker)", 0.01),
}
"""Figure -> what it is, and the most that it should be."""


def figures(results: Mapping[str, Any]) -> dict[str, float]:
    """The figures that goals are about."""
    seconds, memory = results["seconds"], results["loss_bytes"]
    loader = results["loader"]["1"]
    return {
        "to_dense": seconds[SPARSE] / seconds[DENSE],
        "to_online": seconds[SPARSE] / seconds[ONLINE],
        "loss_memory": _beyond_gradients(memory[SPARSE]) / _beyond_gradients(memory[DENSE]),
        "loader_share": _share(loader),
    }


def break_even_runs(results: Mapping[str, Any]) -> float:
    """Runs over the data after which build and sparse steps took less time than online steps; inf where never."""
    seconds, loader = results["seconds"], results["loader"]["1"]
    saved = seconds[ONLINE] - seconds[SPARSE] - loader["wait_seconds"]
    return seconds[BUILD] / saved if saved > 0 else math.inf


def section(results: Mapping[str, Any]) -> str:
    return "\n".join(
        [
            "## What a student's step costs",
            "",
            introduction(results["settings"]),
            "",
            steps_table(results),
            "",
            loss_table(results),
            "",
            *loader_lines(results),
            "",
            *verdict(results),
            "",
        ]
    )


def introduction(settings: Mapping[str, Any]) -> str:
    """Machine, versions, shapes."""
    versions = ", ".join(f"{name} {version}" for name, version in settings["versions"].items())
    shape = f"hidden size {settings['hidden_size']}, {settings['layers']} layers, {settings['dtype']}"
    return (
        f"{settings['device']}; {versions}.\n"
        f"A Llama of {settings['parameters']:,} parameters with random weights, V = {settings['vocabulary']:,}, {shape};\n"
        f"{settings['rows']} sequences of {settings['sequence_length']} tokens without padding, "
        f"{settings['prompt_tokens']} of them the prompt's; {settings['support_mean']:.0f} tokens kept a position.\n"
        f"A step is a forward pass, the loss and a backward pass; medians of {settings['repeats']}, measured in turn."
    )


def steps_table(results: Mapping[str, Any]) -> str:
    lines = [
        "| step | seconds (fastest to slowest) | to dense | to online | peak memory |",
        "|---|--:|--:|--:|--:|",
    ]
    seconds = results["seconds"]
    for name, label in NAMES.items():
        if name not in seconds:
            lines.append(f"| {label} | | | | |")
            continue
        spread = results["spread"][name]
        cells = [
            label,
            f"{seconds[name]:.3f} ({spread[0]:.3f} to {spread[1]:.3f})",
            f"{seconds[name] / seconds[DENSE]:.2f}",
            f"{seconds[name] / seconds[ONLINE]:.2f}",
            _megabytes(results["step_bytes"][name]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if results["settings"]["why_no_liger"]:
        lines += ["", f"No figures for Liger: {results['settings']['why_no_liger']}."]
    return "\n".join(lines)


def loss_table(results: Mapping[str, Any]) -> str:
    """Loss and output layer alone, from the hidden states on and back to them."""
    lines = [
        "| loss and output layer alone | seconds | peak memory | gradients left behind | peak beyond them |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, memory in results["loss_bytes"].items():
        sizes = (memory["peak"], memory["gradients"], _beyond_gradients(memory))
        cells = [NAMES[name], f"{results['loss_seconds'][name]:.3f}", *map(_megabytes, sizes)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def loader_lines(results: Mapping[str, Any]) -> list[str]:
    lines = ["| loader | wait, ms | step, ms | share |", "|---|--:|--:|--:|"]
    for workers, loader in results["loader"].items():
        cells = [f"{1000 * loader[name]:.1f}" for name in ("wait_seconds", "step_seconds")]
        lines.append(f"| {workers} workers | {' | '.join(cells)} | {_share(loader):.1%} |")
    return lines


def verdict(results: Mapping[str, Any]) -> list[str]:
    """Every goal with its figure, and the break-even."""
    found = figures(results)
    lines = [
        f"* {what}: {found[name]:.3g}; asked for {goal:g} or less, {'reached' if found[name] <= goal else 'missed'}."
        for name, (what, goal) in GOALS.items()
    ]
    runs, build = break_even_runs(results), results["seconds"][BUILD]
    paid = "never" if math.isinf(runs) else f"after {runs:.2g} runs over the same data, so with run {math.ceil(runs)}"
    return [
        *lines,
        f"* The build scored the same sequences, three models and the support, in {build:.3f} s: "
        f"{build / results['seconds'][ONLINE]:.1f} online steps. The cache has paid for itself {paid}.",
    ]


def _beyond_gradients(memory: Mapping[str, int]) -> int:
    return memory["peak"] - memory["gradients"]


def _share(loader: Mapping[str, float]) -> float:
    return loader["wait_seconds"] / (loader["wait_seconds"] + loader["step_seconds"])


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
