"""Packages that only a notebook needs, imported when they are used."""

import importlib
from typing import Any

from shards.errors import OptionError


def extra(name: str) -> Any:
    """The module of this name. Raises OptionError, naming the extra, if it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        package = name.partition(".")[0]
        if exc.name != package:
            raise
        raise OptionError(f"{package}: expected it to be installed; install aligndistil-offline[notebook]") from exc
