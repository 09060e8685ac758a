"""Checks that all processes of a run have read the same inputs."""

from collections.abc import Mapping, Sequence
from typing import Any

from shards.format.manifest import differences


def first_difference(found: Sequence[tuple[str, Mapping[str, Any]]]) -> str | None:
    """One line about the first process whose inputs differ from rank 0's, or None; found: (node, identity) by rank."""
    for rank, (node, identity) in enumerate(found):
        for name, first, other in differences(found[0][1], identity):
            return f"rank {rank} on {node} has other inputs than rank 0, {name}: expected {first}, got {other}"
    return None
