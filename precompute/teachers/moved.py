"""How far a training moved its model: its last rewards, and its saved weights compared with the initial ones."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from shards.errors import ModelError

FEW_IN_BFLOAT16 = 0.5
"""If a smaller share of the moved weights also differs in bfloat16, advise to build in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """Number of weights with the same name in both folders, of those that differ, and that still differ in bfloat16.

    As text: empty if there was nothing to compare.
    """

    weights: int
    moved: int
    moved_in_bfloat16: int

    def __str__(self) -> str:
        if not self.weights:
            return ""
        if not self.moved:
            return f"none of {self.weights:,} weights moved: the model is its reference"
        text = f"{self.moved:,} of {self.weights:,} weights moved, {self.moved_in_bfloat16:,} of them in bfloat16 too"
        few = self.moved_in_bfloat16 < FEW_IN_BFLOAT16 * self.moved
        return f"{text}: build with --dtype float32, bfloat16 would round most of it away" if few else text


def measure_moved(folder: Path, before: Path | None, who: str) -> Moved:
    """Compare the weights of a folder with those of `before`; None: nothing to compare with.

    Raises ModelError if a weight is not finite.
    """
    old = _weights(before) if before else {}
    counts = torch.zeros(3, dtype=torch.long)
    for name, file in _weights(folder).items():
        new = _tensor(file, name)
        if not bool(torch.isfinite(new).all()):
            raise ModelError(
                f"{who}: expected finite weights after the training, got {name} with {_first_odd(new)}; "
                "lower --learning_rate, and give another --out"
            )
        start = _tensor(old[name], name) if name in old else None
        if start is not None and start.shape == new.shape:
            pairs = ((new, start.to(new.dtype)), (new.bfloat16(), start.bfloat16()))
            counts += torch.tensor([new.numel(), *(int((a != b).sum()) for a, b in pairs)])
    weights, moved, rounded = counts.tolist()
    return Moved(weights=weights, moved=moved, moved_in_bfloat16=rounded)


def rewards_text(history: Sequence[Mapping[str, Any]]) -> str:
    """The last values on preferences in the log of a training; empty if the log has none."""
    logged = [entry for entry in history if "rewards/margins" in entry]
    if not logged:
        return ""
    accuracy, margin = (logged[-1][f"rewards/{name}"] for name in ("accuracies", "margins"))
    return f"at last {accuracy:.0%} of the pairs told as trained, by a reward margin of {margin:.2g} on average; "


def _weights(folder: Path) -> dict[str, Path]:
    """The file that holds each weight."""
    return {name: file for file in sorted(folder.glob("model*.safetensors")) for name in _names(file)}


def _names(file: Path) -> Iterator[str]:
    with safe_open(file, framework="pt") as weights:
        yield from weights.keys()


def _tensor(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, framework="pt") as weights:
        return weights.get_tensor(name)


def _first_odd(weight: torch.Tensor) -> float:
    return float(weight[~torch.isfinite(weight)][0])
