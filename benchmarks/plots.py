"""What all pictures of the benchmarks need."""

import importlib.util

from shards.errors import OptionError


def require_matplotlib() -> None:
    """Raise OptionError where it is not installed: before the work, not after it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise OptionError("expected matplotlib to be installed; install aligndistil-offline[benchmarks]")
