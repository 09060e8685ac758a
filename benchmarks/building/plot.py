"""The picture: a column for every size that grew; seconds of a build and of its floor."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.building.report import AXES, whole
from benchmarks.plots import save_svg


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Write the picture as SVG, the same bytes for the same results."""
    growth = results["growth"]
    figure = Figure(figsize=(2.3 * len(growth) + 0.6, 2.9), layout="constrained")
    (axes,) = figure.subplots(1, len(growth), sharey=True, squeeze=False)
    for axis, (name, points) in zip(axes, growth.items(), strict=True):
        values = [point["value"] for point in points]
        for label, of, line in (("build", whole, "-"), ("floor", lambda seconds: seconds["floor"], ":")):
            seconds = [of(point["seconds"]) for point in points]
            axis.loglog(values, seconds, line, color="black", marker=".", label=label)
        axis.set_xlabel(AXES[name], fontsize=9)
        axis.set_xticks(values, [f"{value:,}" for value in values])
        axis.minorticks_off()
        axis.tick_params(labelsize=8)
    figure.axes[0].set_ylabel("seconds", fontsize=9)
    figure.axes[0].legend(fontsize=8, frameon=False)
    save_svg(figure, path, salt="building")
