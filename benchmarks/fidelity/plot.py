"""The picture: worst angle and worst deficit against bytes, a line for every way to choose and to store tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.plots import save_svg

MARKS = {
    "ours": "o-",
    "ours, equally many everywhere": "s--",
    "largest probability": "^--",
    "top k of one teacher": "v:",
}


def draw(rows: Sequence[Mapping[str, Any]], path: Path, *, title: str) -> None:
    """Write the picture as SVG, the same bytes for the same results."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    figure.suptitle(title, fontsize=10)
    lines: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        lines.setdefault((row["support"], row["values"]), []).append(row)
    for axis, name, unit in zip(figure.subplots(1, 2), ("angle", "deficit"), ("degrees", "share"), strict=True):
        for (support, values), found in lines.items():
            sizes = [row["bytes"] for row in found]
            worst = [max(map(abs, row[name])) for row in found]
            axis.loglog(sizes, worst, MARKS[support], label=f"{support}, {values}", markersize=4, linewidth=1)
        axis.set_xlabel("bytes a position")
        axis.set_ylabel(f"worst {name}, {unit}")
        axis.grid(alpha=0.3, which="both")
    figure.axes[0].legend(fontsize=7, frameon=False)
    save_svg(figure, path, salt="fidelity")
