"""The files that are mutated: sound content of each, and what our code does with it. One table."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stress.mutants import cache_targets, data_targets, model_targets, run_targets


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One kind of file.

    file      where a mutant is written; work: what reads it, and ends with values that are as they should be or with
              one of our errors
    seeds     sound contents
    weight    its share of all mutants
    is_json   mutants of the values, too
    """

    name: str
    file: Path
    seeds: tuple[bytes, ...]
    work: Callable[[], object]
    weight: int = 1
    is_json: bool = False

    def put(self, content: bytes) -> None:
        self.file.write_bytes(content)


def targets(ground: Path) -> dict[str, Target]:
    """All targets, with their files under `ground`."""
    found: dict[str, Target] = {}
    for make in (cache_targets.targets, model_targets.targets, run_targets.targets, data_targets.targets):
        found |= {facts["name"]: Target(**facts) for facts in make(ground)}
    return found
