"""Common code of the benchmarks' pictures. Importing it does not import matplotlib."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from shards.errors import OptionError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def require_matplotlib() -> None:
    """Raise OptionError if matplotlib is not installed: before the work, not after it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise OptionError("expected matplotlib to be installed; install aligndistil-offline[benchmarks]")


def save_svg(figure: "Figure", path: Path, *, salt: str) -> None:
    """Write a picture, the same bytes for the same results; salt: for the ids in it."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(path, format="svg", metadata={"Date": None})
