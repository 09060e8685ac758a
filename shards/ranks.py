"""Processes that work together must have read the same: what each is told apart by, compared with the first's."""

from collections.abc import Mapping, Sequence
from typing import Any

from shards.manifest import differences


def first_difference(found: Sequence[tuple[str, Mapping[str, Any]]]) -> str | None:
    """One line on the first process, of (node, identity) by rank, that has read other inputs than rank 0; else None."""
    for rank, (node, identity) in enumerate(found):
        for name, first, other in differences(found[0][1], identity):
            return f"rank {rank} on {node} has other inputs than rank 0, {name}: expected {first}, got {other}"
    return None
