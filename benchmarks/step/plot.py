"""The picture: a column for every size that grew; seconds of the steps above, bytes of the losses below."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.plots import save_svg
from benchmarks.step.report import AXIS_NAMES
from benchmarks.step.steps import BUILD, DENSE, ONLINE, SPARSE

STYLES = {
    SPARSE: ("-", "black"),
    DENSE: ("-", "tab:blue"),
    ONLINE: ("-", "tab:orange"),
    BUILD: (":", "tab:green"),
}


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Write the picture as SVG, the same bytes for the same results."""
    axes = results["growth"]
    figure = Figure(figsize=(2.3 * len(axes) + 0.6, 5.0), layout="constrained")
    above, below = figure.subplots(2, len(axes), sharex="col", sharey="row", squeeze=False)
    for column, (axis, points) in enumerate(axes.items()):
        values = [point["value"] for point in points]
        for name, (line, colour) in STYLES.items():
            style = {"linestyle": line, "color": colour, "marker": ".", "label": name}
            above[column].plot(values, [point["seconds"][name] for point in points], **style)
            if name in points[0]["loss_bytes"]:
                below[column].plot(values, [point["loss_bytes"][name]["peak"] / 1e6 for point in points], **style)
        for cell in (above[column], below[column]):
            cell.set_xscale("log", base=2)
            cell.set_yscale("log")
            cell.tick_params(labelsize=8)
        below[column].set_xlabel(AXIS_NAMES[axis], fontsize=9)
        below[column].set_xticks(values, [f"{value:,}" for value in values])
        below[column].minorticks_off()
    above[0].set_ylabel("a step, seconds", fontsize=9)
    below[0].set_ylabel("loss and output layer, peak MB", fontsize=9)
    above[0].legend(fontsize=8, frameon=False)
    save_svg(figure, path, salt="step")
