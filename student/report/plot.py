"""The figures of a run as a matplotlib figure, which a notebook shows and `savefig` writes."""

from collections.abc import Mapping, Sequence
from typing import Any

from shards.errors import OptionError
from shards.notebook.plots import panels
from student.log.figures import figure_of
from student.log.series import Series


def plot_run(title: str, figures: Mapping[str, Series], names: Sequence[str]) -> Any:
    """A panel for each name, two beside each other. Raises OptionError for a figure that was not logged."""
    for name in names:
        if name not in figures:
            raise OptionError(f"figure: expected one of {', '.join(figures)}, got {name!r}")
    picture, axes = panels(-(-len(names) // 2), min(2, len(names)), width=9.0, height=2.6 * -(-len(names) // 2))
    for axis, name in zip(axes, names, strict=False):
        described, series = figure_of(name), figures[name]
        axis.plot(series.steps, series.mean)
        axis.set_title(described.heading + (f", {described.good} is better" if described.good else ""), fontsize=9)
        axis.set_xlabel("step")
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    picture.suptitle(title, fontsize=10)
    return picture
