"""Processes that work together must have read the same: what each is told apart by, compared with the first's."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from shards.errors import OptionError
from shards.manifest import differences

_LAUNCHER = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def world_size() -> int:
    """How many processes a launcher such as torchrun says there are; 1 without one.

    Raises OptionError where WORLD_SIZE stands in the environment without what a launcher sets beside it.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise OptionError(f"WORLD_SIZE: expected a number of processes in the environment, got {text!r}; unset it")
    missing = [name for name in _LAUNCHER if name not in os.environ]
    if int(text) > 1 and missing:
        raise OptionError(
            f"WORLD_SIZE: expected a launcher such as torchrun, which sets {', '.join(_LAUNCHER)}, got "
            f"WORLD_SIZE={text} without {missing[0]}; unset it to run one process"
        )
    return int(text)


def first_difference(found: Sequence[tuple[str, Mapping[str, Any]]]) -> str | None:
    """One line on the first process, of (node, identity) by rank, that has read other inputs than rank 0; else None."""
    for rank, (node, identity) in enumerate(found):
        for name, first, other in differences(found[0][1], identity):
            return f"rank {rank} on {node} has other inputs than rank 0, {name}: expected {first}, got {other}"
    return None
