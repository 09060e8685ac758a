"""The results in words. Pure functions of results.json."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.step.steps import BUILD, DENSE, DENSE_RESPONSES, LIGER, ONLINE, ONLINE_LOGGED, SPARSE, TWICE

NAMES = {
    SPARSE: "sparse, from the cache",
    TWICE: "the same, output layer called as a module (logits twice)",
    DENSE: "dense cross-entropy of transformers",
    DENSE_RESPONSES: "dense cross-entropy, response positions only",
    LIGER: "Liger's fused cross-entropy",
    ONLINE: "online: live dpo and reverse models, dense reverse KL",
    ONLINE_LOGGED: "the same, with the rewards and KLs that a sparse step logs",
}
GOALS = {
    "to_dense": ("a sparse step over a dense one", 0.85),
    "to_online": ("a sparse step over an online one", 0.25),
    "loss_memory": ("peak memory of loss and output layer over the dense loss's", 0.1),
    "loss_memory_less_gradients": ("the same, both less the gradients that they leave behind", 0.1),
    "loader_share": ("share of a step that waits for the loader (one worker)", 0.01),
}
"""Figure -> its meaning, and its goal: the largest value."""
AXIS_NAMES = {
    "rows": "sequences",
    "top_k": "tokens kept, mean",
    "vocabulary": "vocabulary",
    "sequence_length": "sequence length",
    "prompt_tokens": "prompt's tokens",
    "hidden_size": "hidden size",
}


def figures(results: Mapping[str, Any]) -> dict[str, float]:
    """The figures with goals."""
    seconds, memory = results["seconds"], results["loss_bytes"]
    loader = results["loader"]["1"]
    return {
        "to_dense": seconds[SPARSE] / seconds[DENSE],
        "to_online": seconds[SPARSE] / seconds[ONLINE],
        "loss_memory": memory[SPARSE]["peak"] / memory[DENSE]["peak"],
        "loss_memory_less_gradients": _less_gradients(memory[SPARSE]) / _less_gradients(memory[DENSE]),
        "loader_share": _share(loader),
    }


def break_even_runs(results: Mapping[str, Any], build_seconds: float) -> float:
    """Runs over the data after which build and sparse steps took less time than online steps; inf if never.

    build_seconds   of the build's work for the sequences of one step
    """
    seconds, loader = results["seconds"], results["loader"]["1"]
    saved = seconds[ONLINE] - seconds[SPARSE] - loader["wait_seconds"]
    return build_seconds / saved if saved > 0 else math.inf


def section(results: Mapping[str, Any], plot: str) -> str:
    """All tables; plot is the path of the picture of the growth, seen from the page."""
    parts = [
        "## What a student's step costs",
        introduction(results["settings"]),
        steps_table(results),
        loss_table(results),
        loader_table(results["loader"]),
        "\n".join(verdict(results)),
    ]
    if "growth" in results:
        parts += ["One size multiplied at a time, the others as above:", growth_table(results["growth"])]
        parts += [f"![Seconds and bytes against each size]({plot})"]
    return "\n\n".join(parts) + "\n"


def introduction(settings: Mapping[str, Any]) -> str:
    """Machine, versions, shapes."""
    shape = f"hidden size {settings['hidden_size']}, {settings['layers']} layers, {settings['dtype']}"
    return (
        f"`{settings['command']}`\n\n{settings['device']}; {settings['versions']}.\n"
        f"A Llama of {settings['parameters']:,} parameters, random weights, V = {settings['vocabulary']:,}, {shape};\n"
        f"{settings['rows']} sequences of {settings['sequence_length']} tokens without padding, "
        f"{settings['prompt_tokens']} of them the prompt's; {settings['support_mean']:.0f} tokens kept a position.\n"
        f"A step is a forward pass, the loss and a backward pass; medians of {settings['repeats']}, measured in turn, "
        f"in seconds of {settings['seconds_of']}."
    )


def steps_table(results: Mapping[str, Any]) -> str:
    lines = [
        "| step | seconds | by the clock, fastest to slowest | to dense | to online | peak memory |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    seconds = results["seconds"]
    for name, label in NAMES.items():
        if name not in seconds:
            lines.append(f"| {label} | | | | | |")
            continue
        fastest, slowest = results["clock"][name]
        cells = [
            label,
            f"{seconds[name]:.3f}",
            f"{fastest:.3f} to {slowest:.3f}",
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
        "| loss and output layer alone | seconds | peak memory | gradients left behind | peak less them |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, memory in results["loss_bytes"].items():
        sizes = (memory["peak"], memory["gradients"], _less_gradients(memory))
        cells = [NAMES[name], f"{results['loss_seconds'][name]:.3f}", *map(_megabytes, sizes)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def loader_table(loaders: Mapping[str, Mapping[str, float]]) -> str:
    lines = ["| loader | wait, ms | step, ms | share |", "|---|--:|--:|--:|"]
    for workers, loader in loaders.items():
        cells = [f"{1000 * loader[name]:.1f}" for name in ("wait_seconds", "step_seconds")]
        lines.append(f"| {workers} workers | {' | '.join(cells)} | {_share(loader):.1%} |")
    return "\n".join(lines)


def verdict(results: Mapping[str, Any]) -> list[str]:
    """Every goal with its figure, and the break-even."""
    found = figures(results)
    lines = [
        f"* {what}: {found[name]:.3g}; asked for {goal:g} or less, {'reached' if found[name] <= goal else 'missed'}."
        for name, (what, goal) in GOALS.items()
    ]
    rows, built = results["settings"]["rows"], results["build"]
    scoring, whole = results["seconds"][BUILD], built["seconds"] * rows / built["rows"]
    return [
        *lines,
        f"* The build scored the same sequences, three models and the support, in {scoring:.3g} s, "
        f"{scoring / results['seconds'][ONLINE]:.2g} online steps: paid for {_paid(results, scoring)}.",
        f"* The whole build of {built['rows']} sequences, with loading, threshold, writing and checking, took "
        f"{built['seconds']:.3g} s, {whole:.3g} s a step's share: paid for {_paid(results, whole)}.",
    ]


def growth_table(points: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    lines = [
        "| | | sparse, s | dense, s | online, s | build, s | sparse / dense | sparse / online | loss, sparse | dense |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for axis, found in points.items():
        for point in found:
            seconds = point["seconds"]
            cells = [
                AXIS_NAMES[axis],
                f"{point['value']:,}",
                *(f"{seconds[name]:.3g}" for name in (SPARSE, DENSE, ONLINE, BUILD)),
                *(f"{seconds[SPARSE] / seconds[name]:.2f}" for name in (DENSE, ONLINE)),
                *(_megabytes(point["loss_bytes"][name]["peak"]) for name in (SPARSE, DENSE)),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _paid(results: Mapping[str, Any], build_seconds: float) -> str:
    runs = break_even_runs(results, build_seconds)
    return "never" if math.isinf(runs) else f"after {runs:.2g} runs over the data, so with run {math.ceil(runs)}"


def _less_gradients(memory: Mapping[str, int]) -> int:
    return memory["peak"] - memory["gradients"]


def _share(loader: Mapping[str, float]) -> float:
    return loader["wait_seconds"] / (loader["wait_seconds"] + loader["step_seconds"])


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
