"""Sums of the errors, losses and gradients that `compare` finds; they add up over chunks. Pure.

Every result is a frozen value with `+`, so that memory does not grow with the number of positions.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from precompute.scoring.dense import angle_degrees
from shards.format.schema import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorSum:
    """Absolute differences: how many, their sum and the largest, in the unit of what was compared. NaN stays NaN."""

    count: int = 0
    total: float = 0.0
    largest: float = 0.0

    @classmethod
    def between(cls, found: Any, expected: torch.Tensor) -> "ErrorSum":
        """Of a cached array and the live values, same shape. Equal ones differ by 0, also where both are -inf."""
        return cls.outside(found, found, expected)

    @classmethod
    def outside(cls, lowest: Any, highest: Any, expected: torch.Tensor) -> "ErrorSum":
        """Of the live values and the intervals that they should lie in, same shape: 0 inside, else how far outside."""
        lowest, highest = (as_tensor(end, expected.device) for end in (lowest, highest))
        inside = (lowest <= expected) & (expected <= highest)
        error = torch.where(inside, 0.0, torch.maximum(lowest - expected, expected - highest))
        return cls(count=error.numel(), total=float(error.sum()), largest=float(error.max()))

    def __add__(self, other: "ErrorSum") -> "ErrorSum":
        largest = float(np.maximum(self.largest, other.largest))  # unlike max, it does not lose a NaN
        return ErrorSum(count=self.count + other.count, total=self.total + other.total, largest=largest)

    @property
    def mean(self) -> float:
        """Of at least one difference."""
        return self.total / self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreErrors:
    """Errors of cached scores: kept, next-token and tail log-probs by role (nats), D_t by negative (not halved).

    They are distances to the intervals that the stored values stand for (`shards.format.encoding.spans`).
    """

    kept: Mapping[Role, ErrorSum]
    next: Mapping[Role, ErrorSum]
    tail: Mapping[Role, ErrorSum]
    l1_distance: Mapping[Role, ErrorSum]

    def __add__(self, other: "ScoreErrors") -> "ScoreErrors":
        return ScoreErrors(**{f.name: _added(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherErrors:
    """Errors of a composed teacher's log p*, nats: on the support, and of the tail's mass."""

    kept: ErrorSum
    tail: ErrorSum

    def __add__(self, other: "TeacherErrors") -> "TeacherErrors":
        return TeacherErrors(kept=self.kept + other.kept, tail=self.tail + other.tail)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSums:
    """Sums over positions of one student's loss, lambda_t times its divergence (nats), dense and sparse.

    dense_square, sparse_square, difference_square   squared norms of the two gradients and of their difference
    low_positions, low_loss, low_square              positions with w_t < LOW_STRENGTH, and their part of the dense sums
    """

    positions: int
    dense_loss: float
    sparse_loss: float
    dense_square: float
    sparse_square: float
    difference_square: float
    low_positions: int
    low_loss: float
    low_square: float

    def __add__(self, other: "LossSums") -> "LossSums":
        return LossSums(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    @property
    def deficit(self) -> float | None:
        """The part of the dense loss that the sparse one lacks; None where there is no loss.

        With the same models on both sides it is 0 or more, by the data-processing inequality.
        """
        return 1 - self.sparse_loss / self.dense_loss if self.dense_loss else None

    @property
    def norm_ratio(self) -> float | None:
        """Length of the sparse gradient over that of the dense one; None where there is no gradient."""
        return math.sqrt(self.sparse_square / self.dense_square) if self.dense_square else None

    @property
    def angle_degrees(self) -> float | None:
        """Angle between the two gradients; None where one of them is zero."""
        return angle_degrees(self.dense_square, self.sparse_square, self.difference_square)

    @property
    def low_loss_share(self) -> float | None:
        return self.low_loss / self.dense_loss if self.dense_loss else None

    @property
    def low_gradient_share(self) -> float | None:
        """Of the squared gradient."""
        return self.low_square / self.dense_square if self.dense_square else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Everything that is compared for one teacher; `stages` has a LossSums for each student of STAGES."""

    scores: ScoreErrors
    teacher: TeacherErrors
    stages: Mapping[str, LossSums]

    def __add__(self, other: "Comparison") -> "Comparison":
        return Comparison(
            scores=self.scores + other.scores,
            teacher=self.teacher + other.teacher,
            stages=_added(self.stages, other.stages),
        )


def as_tensor(array: Any, device: torch.device) -> torch.Tensor:
    """A numpy array as float64 on a device; a copy, since a cache's arrays are read-only."""
    return torch.from_numpy(np.array(array, dtype=np.float64)).to(device)


def _added(mine: Mapping[Any, Any], theirs: Mapping[Any, Any]) -> dict[Any, Any]:
    assert mine.keys() == theirs.keys(), "sums of one comparison have the same parts"
    return {key: value + theirs[key] for key, value in mine.items()}
