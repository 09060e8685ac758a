"""Plots of rows and of trust: matplotlib figures, which a notebook shows and `savefig` writes."""

from typing import Any

import numpy as np

from shards.notebook.extras import extra
from shards.progress import notebook
from shards.teacher.trust import Trust

BLUE, ORANGE, GREY = "#2b7bba", "#e07f10", "#5b6470"
MOST_LABELS = 80
"""With more tokens, the axis has their numbers instead of their texts."""
SHOWN = {
    "strength": ("strength w_t", True),
    "l1_distance": ("D_t", False),
    "coverage_teacher": ("teacher's mass on the kept tokens", False),
    "logprob_bound": ("error bound of log p*, nats", True),
}
"""The histograms of a trust that are drawn: their axis, and whether it is logarithmic."""


def plot_row(reward_N: np.ndarray, tokens: list[str], title: str) -> Any:
    """A figure with the reward of every token as bars, and the running sum above them as a line."""
    figure, axes = panels(2, 1, width=max(6.0, min(18.0, 0.22 * len(tokens))), height=4.5)
    places = np.arange(len(tokens))
    axes[0].plot(places, np.cumsum(reward_N), color=GREY, drawstyle="steps-mid")
    axes[0].set_ylabel("running sum, nats")
    axes[0].set_title(title)
    axes[1].bar(places, reward_N, color=np.where(reward_N >= 0, BLUE, ORANGE))
    axes[1].set_ylabel("reward, nats")
    for axis in axes:
        axis.axhline(0, color=GREY, linewidth=0.5)
    if len(tokens) <= MOST_LABELS:
        # matplotlib reads a dollar sign as the start of a formula
        labels = [
            text.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}").replace("$", r"\$") for text in tokens
        ]
        axes[1].set_xticks(places, labels, rotation=90, fontsize=8)
    else:
        axes[1].set_xlabel("position")
    return figure


def plot_trust(trust: Trust) -> Any:
    """A figure with the distributions of a trust over the response positions."""
    figure, axes = panels(2, 2, width=9.0, height=5.5)
    for axis, (name, (label, logarithmic)) in zip(axes, SHOWN.items(), strict=True):
        histogram = trust.histograms[name]
        shares = np.linspace(0.0, 1.0, 201)
        values = np.array([histogram.quantile(share) for share in shares])
        axis.plot(np.maximum(values, 1e-9) if logarithmic else values, shares, color=BLUE)
        axis.set_xscale("log" if logarithmic else "linear")
        axis.set_xlabel(label)
        axis.set_ylabel("share of positions below")
        axis.set_title(f"mean {histogram.mean:.4g}", fontsize=9)
    figure.suptitle(f"{trust.spec}, {trust.positions:,} positions", fontsize=10)
    return figure


def panels(rows: int, columns: int, *, width: float, height: float) -> tuple[Any, np.ndarray]:
    """A figure outside of pyplot's list, which would keep it in memory, and its axes, row by row."""
    figure = extra("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
    if (shell := notebook()) is not None:  # it knows such figures only after pyplot was imported, or when told
        extra("IPython.core.pylabtools").select_figure_formats(shell, {"png"})
    return figure, np.ravel(figure.subplots(rows, columns, sharex=columns == 1))
