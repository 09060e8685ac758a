"""The pictures: frontiers with a band of 95% over seeds, and reward against steps and CPU time."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from benchmarks.alignment.experiment import KLS
from benchmarks.alignment.methods import FEW, ITSELF
from benchmarks.alignment.summary import choices_of, frontier, methods_of, seeds_of
from benchmarks.plots import save_svg

COLOURS = {
    "dpo": "black",
    "distilled dpo": "tab:gray",
    "linear": "tab:blue",
    "contrastive": "tab:green",
    "adaptive": "tab:orange",
    "aligndistil": "tab:red",
    "learned, dpo/reverse": "tab:purple",
    "learned, reference/reference": "tab:pink",
    "policy gradient": "tab:brown",
}
PANELS = {
    "on the pairs' chosen responses": (),
    "on rollouts": ("rollouts", "3 rounds"),
    "with few pairs": (FEW,),
}
"""Title -> endings of the names of its methods; none: methods without such an ending."""
GRID = [i * 2 * max(KLS) / 60 for i in range(61)]
KNOBS_SHOWN = {"linear": 2.0, "contrastive": 0.5, "adaptive": 5.0, "aligndistil": 1.0}
"""Method -> value of the knob whose runs are drawn against steps, together with the best DPO."""


def draw_frontiers(results: Mapping[str, Any], path: Path) -> None:
    """Write the picture as SVG, the same bytes for the same results."""
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    axes = figure.subplots(1, len(PANELS), sharey=True)
    methods = [name for name in methods_of(results) if ITSELF not in name]
    endings = [ending for panel in PANELS.values() for ending in panel]
    for axis, (title, panel) in zip(axes, PANELS.items(), strict=True):
        plain = [name for name in methods if not name.endswith(tuple(endings))]
        theirs = [name for name in methods if name.endswith(panel)] if panel else []
        shown = [*(name for name in plain if not panel or name in ("dpo", "policy gradient")), *theirs]
        for method in shown:
            _draw_frontier(axis, results, method)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("KL to the reference, nats a response")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, frameon=False)
    axes[0].set_ylabel("true reward")
    _save(figure, path)


def _draw_frontier(axis: Any, results: Mapping[str, Any], method: str) -> None:
    """The mean over seeds; for dpo and aligndistil with its interval."""
    name = method if method in COLOURS else method.partition(", ")[0]
    line = "--" if method.endswith("3 rounds") or method == f"dpo, {FEW}" else "-"
    found = [frontier(results, method, kl) for kl in GRID]
    means = [value.mean for value in found]
    axis.plot(GRID, means, line, color=COLOURS[name], label=method, linewidth=1.2)
    if name in ("dpo", "aligndistil"):
        widths = [value.half_width or 0.0 for value in found]
        low, high = ([m + s * w for m, w in zip(means, widths, strict=True)] for s in (-1, 1))
        axis.fill_between(GRID, low, high, color=COLOURS[name], alpha=0.12, linewidth=0)


def draw_paths(results: Mapping[str, Any], path: Path) -> None:
    """Mean reward and KL along the trainings, at one value of every knob."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    axes = figure.subplots(1, 3)
    seeds = seeds_of(results)
    shown = KNOBS_SHOWN | {"dpo": choices_of(results, "")["dpo_beta"]}
    for i, run in enumerate(seeds[0]["runs"]):
        if shown.get(run["method"]) != run["value"]:
            continue
        paths = [[seed["reference"], *seed["runs"][i]["points"]] for seed in seeds]
        columns = [
            [fmean(point[name] for point in points) for points in zip(*paths, strict=True)]
            for name in ("step", "seconds", "reward", "kl_nats")
        ]
        steps, seconds, rewards, kls = columns
        label = f"{run['method']}, {run['knob']} {run['value']:g}"
        for axis, x, y in zip(axes, (steps, seconds, steps), (rewards, rewards, kls), strict=True):
            axis.plot(x, y, "o-", color=COLOURS[run["method"]], markersize=3, linewidth=1.2, label=label)
    for axis, x, y in zip(
        axes, ("step", "CPU seconds", "step"), ("true reward", "true reward", "KL to the reference, nats"), strict=True
    ):
        axis.set_xlabel(x)
        axis.set_ylabel(y)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7, frameon=False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    save_svg(figure, path, salt="alignment")
