"""How far a training moved its model: its last rewards, and its saved weights compared with the initial ones."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from shards.errors import ModelError
from shards.files import matching

FEW = 0.5
"""If a smaller share of the moved weights also differs in a dtype, advise against a build in it."""
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """Number of weights with the same name in both folders, of those that differ, and of those that do in a half.

    moved_in: dtype -> number. As text: empty if there was nothing to compare.
    """

    weights: int
    moved: int
    moved_in: Mapping[str, int]

    def __str__(self) -> str:
        if not self.weights:
            return ""
        if not self.moved:
            return f"none of {self.weights:,} weights moved: the model is its reference"
        too = " and ".join(f"{count:,} in {name}" for name, count in self.moved_in.items())
        text = f"{self.moved:,} of {self.weights:,} weights moved, of them {too} too"
        lossy = [name for name, count in self.moved_in.items() if count < FEW * self.moved]
        if not lossy:
            return text
        good = " or ".join(["float32", *(name for name in self.moved_in if name not in lossy)])
        return f"{text}: build with --dtype {good}, {' and '.join(lossy)} would round most of it away"


def measure_moved(folder: Path, before: Path | None, who: str) -> Moved:
    """Compare the weights of a folder with those of `before`; None: nothing to compare with.

    Raises ModelError if a weight is not finite.
    """
    old = _weights(before) if before else {}
    counts = torch.zeros(2 + len(HALVES), dtype=torch.long)
    for name, file in _weights(folder).items():
        new = _tensor(file, name)
        if not bool(torch.isfinite(new).all()):
            raise ModelError(
                f"{who}: expected finite weights after the training, got {name} with {_first_odd(new)}; "
                "lower --learning_rate, and give another --out"
            )
        start = _tensor(old[name], name) if name in old else None
        if start is not None and start.shape == new.shape:
            pairs = [(new, start.to(new.dtype)), *((new.to(half), start.to(half)) for half in HALVES.values())]
            counts += torch.tensor([new.numel(), *(int((a != b).sum()) for a, b in pairs)])
    weights, moved, *rounded = counts.tolist()
    return Moved(weights=weights, moved=moved, moved_in=dict(zip(HALVES, rounded, strict=True)))


def rewards_text(history: Sequence[Mapping[str, Any]]) -> str:
    """The last values on preferences in the log of a training; empty if the log has none."""
    logged = [entry for entry in history if "rewards/margins" in entry]
    if not logged:
        return ""
    accuracy, margin = (logged[-1][f"rewards/{name}"] for name in ("accuracies", "margins"))
    return f"at last {accuracy:.0%} of the pairs told as trained, by a reward margin of {margin:.2g} on average; "


def _weights(folder: Path) -> dict[str, Path]:
    """The file that holds each weight."""
    return {name: file for file in matching(folder, "model*.safetensors") for name in _names(file)}


def _names(file: Path) -> Iterator[str]:
    with safe_open(file, framework="pt") as weights:
        yield from weights.keys()


def _tensor(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, framework="pt") as weights:
        return weights.get_tensor(name)


def _first_odd(weight: torch.Tensor) -> float:
    return float(weight[~torch.isfinite(weight)][0])
