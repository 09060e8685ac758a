"""The picture: a column for rows, shards and ranks; seconds above, bytes a row below."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.plots import save_svg
from benchmarks.scaling.report import ORDER

LABELS = {"rows": "rows", "shards": "shards of a million rows", "ranks": "ranks that share a million rows"}
STYLES = ("-", "--", ":", "-.")


def draw(growth: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Write the picture as SVG, the same bytes for the same results."""
    figure = Figure(figsize=(3.0 * len(growth) + 0.6, 5.0), layout="constrained")
    above, below = figure.subplots(2, len(growth), sharex="col", sharey="row", squeeze=False)
    for column, (axis, points) in enumerate(growth.items()):
        values = [point["value"] for point in points]
        seconds, size = above[column], below[column]
        seconds.loglog(values, [p["cpu_seconds"] for p in points], "-", color="black", marker=".", label="open")
        for name, line in zip(ORDER, STYLES, strict=True):
            seconds.loglog(values, [p[name] for p in points], line, color="tab:blue", marker=".", label=name)
        size.semilogx(values, [p["bytes_per_row"] for p in points], "-", color="black", marker=".", label="held")
        size.semilogx(values, [p["peak_bytes_per_row"] for p in points], ":", color="black", marker=".", label="peak")
        size.axhline(64, color="grey", linewidth=0.8)
        size.set_ylim(bottom=0)
        size.set_xlabel(LABELS[axis], fontsize=9)
        size.set_xticks(values, [f"{value:,}" for value in values])
        for cell in (seconds, size):
            cell.minorticks_off()
            cell.tick_params(labelsize=8)
    above[0].set_ylabel("seconds of the processor", fontsize=9)
    below[0].set_ylabel("memory, bytes a row", fontsize=9)
    above[0].legend(fontsize=8, frameon=False)
    below[0].legend(fontsize=8, frameon=False)
    save_svg(figure, path, salt="scaling")
