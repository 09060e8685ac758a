"""Cached, sparse values against live, dense ones: errors, losses and gradients, as sums that add up over chunks. Pure.

The dense side is role -> log-probs over the whole vocabulary; what is compared with it is what a cache holds of the
same positions. Every result is a frozen value with `+`, so that memory does not grow with the number of positions.
Arithmetic is in float64. Gradients are over the student's logits, each position's times its lambda_t.

Dimensions: N positions of a chunk, V vocabulary, M kept tokens over the N positions.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from precompute.bits import Logprobs, l1_distances
from shards import Divergence, TeacherSpec
from shards.compose import LOW_STRENGTH, Teacher, compose
from shards.nodes import StrengthNodes
from shards.schema import Role
from shards.scores import Scores
from shards.teacher import strength, teacher_logits, token_weight

STAGES: Mapping[str, float] = {"at the reference": 0.0, "half way": 0.5, "nearly there": 0.9}
"""Students that are compared: how far each has come from the reference to the teacher, in logits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorSum:
    """Absolute differences: how many, their sum and the largest, in the unit of what was compared. NaN stays NaN."""

    count: int = 0
    total: float = 0.0
    largest: float = 0.0

    @classmethod
    def between(cls, found: Any, expected: torch.Tensor) -> "ErrorSum":
        """Of a cached array and the live values, same shape. Equal ones differ by 0, also where both are -inf."""
        found = _tensor(found, expected.device)
        error = torch.where(found == expected, 0.0, (found - expected).abs())
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
    """Errors of cached scores: kept, next-token and tail log-probs by role (nats), D_t by negative (not halved)."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseTeacher:
    """A teacher over the whole vocabulary: log p* (N, V), w_t (N,) and lambda_t (N,), float64."""

    logprobs: torch.Tensor
    strength: torch.Tensor
    weight: torch.Tensor


def angle_degrees(first_square: float, second_square: float, difference_square: float) -> float | None:
    """Angle between two vectors from their squared lengths and that of their difference; None where one is zero.

    For unit vectors a and b it is 2 atan2(|a - b|, |a + b|), which unlike acos of a cosine is exact for small
    angles. |a - b|^2 comes from the summed squares of the difference, not from a product that cancels.
    """
    lengths = math.sqrt(first_square), math.sqrt(second_square)
    if not all(lengths):
        return None
    apart = max(0.0, difference_square - (lengths[0] - lengths[1]) ** 2) / math.prod(lengths)
    return math.degrees(2 * math.atan2(math.sqrt(apart), math.sqrt(max(0.0, 4 - apart))))


def compare(
    logprobs: Logprobs,
    next_ids_N: torch.Tensor,
    scores: Scores,
    spec: TeacherSpec,
    nodes: StrengthNodes,
    divergence: Divergence,
) -> Comparison:
    """Compare what a cache holds of N positions with the models' log-probs, role -> (N, V).

    next_ids_N: the actual next tokens. The caller has checked that the cache serves the spec.
    """
    logprobs = {role: l_NV.double() for role, l_NV in logprobs.items()}
    dense, sparse = dense_teacher(logprobs, spec), compose(scores, spec, nodes)
    return Comparison(
        scores=score_errors(logprobs, next_ids_N, scores),
        teacher=teacher_errors(dense.logprobs, sparse),
        stages={
            name: loss_sums(student_logprobs(logprobs["reference"], dense.logprobs, done), dense, sparse, divergence)
            for name, done in STAGES.items()
        },
    )


def score_errors(logprobs: Logprobs, next_ids_N: torch.Tensor, scores: Scores) -> ScoreErrors:
    """Errors of everything that is cached but the tails' log partitions, which `teacher_errors` sees the effect of."""
    device = next_ids_N.device
    kept = support_index(scores.support_count, scores.support_ids, device)
    live = {role: logprobs[role].double() for role in scores.logprobs}
    distances = l1_distances(live)
    between, next_N1 = ErrorSum.between, next_ids_N[:, None]
    return ScoreErrors(
        kept={role: between(scores.logprobs[role], l_NV[kept]) for role, l_NV in live.items()},
        next={role: between(scores.next_logprob[role], l_NV.gather(1, next_N1)[:, 0]) for role, l_NV in live.items()},
        tail={role: between(scores.tail_logprob[role], _tail(l_NV, kept)) for role, l_NV in live.items()},
        l1_distance={negative: between(scores.l1_distance[negative], distances[negative]) for negative in distances},
    )


def teacher_errors(dense_NV: torch.Tensor, sparse: Teacher) -> TeacherErrors:
    """Errors of a composed teacher against log p* over the whole vocabulary; between nodes the tail's are no fault."""
    kept = support_index(sparse.support_count, sparse.support_ids, dense_NV.device)
    return TeacherErrors(
        kept=ErrorSum.between(sparse.logprobs, dense_NV[kept]),
        tail=ErrorSum.between(sparse.tail_logprob, _tail(dense_NV, kept)),
    )


def dense_teacher(logprobs: Logprobs, spec: TeacherSpec) -> DenseTeacher:
    """The teacher of live models, from role -> (N, V)."""
    anchor_NV, dpo_NV, negative_NV = (logprobs[role].double() for role in (spec.anchor, "dpo", spec.negative))
    distance_N = l1_distances({"dpo": dpo_NV, spec.negative: negative_NV})[spec.negative]
    strength_N = strength(spec, distance_N)
    logits_NV = teacher_logits(anchor_NV, dpo_NV - negative_NV, strength_N[:, None])
    return DenseTeacher(logprobs=logits_NV.log_softmax(-1), strength=strength_N, weight=token_weight(spec, strength_N))


def student_logprobs(reference_NV: torch.Tensor, teacher_NV: torch.Tensor, done: float) -> torch.Tensor:
    """A student on the straight line, in logits, from the reference (done = 0) to the teacher (done = 1), (N, V)."""
    return torch.lerp(reference_NV, teacher_NV, done).log_softmax(-1)


def loss_sums(student_NV: torch.Tensor, dense: DenseTeacher, sparse: Teacher, divergence: Divergence) -> LossSums:
    """The loss of a student (normalised log-probs) under both teachers, each with its own lambda_t."""
    sparse_weight_N = _tensor(sparse.weight, student_NV.device)
    dense_N, dense_NV = dense_divergence(student_NV, dense.logprobs, divergence)
    sparse_N, sparse_NV = sparse_divergence(student_NV, sparse, divergence)
    dense_N, dense_NV = dense.weight * dense_N, dense_NV.mul_(dense.weight[:, None])
    sparse_N, sparse_NV = sparse_weight_N * sparse_N, sparse_NV.mul_(sparse_weight_N[:, None])
    square_N, low_N = dense_NV.square().sum(-1), dense.strength < LOW_STRENGTH
    return LossSums(
        positions=len(dense_N),
        dense_loss=float(dense_N.sum()),
        sparse_loss=float(sparse_N.sum()),
        dense_square=float(square_N.sum()),
        sparse_square=float(sparse_NV.square().sum()),
        difference_square=float(sparse_NV.sub_(dense_NV).square_().sum()),
        low_positions=int(low_N.sum()),
        low_loss=float(dense_N[low_N].sum()),
        low_square=float(square_N[low_N].sum()),
    )


def dense_divergence(
    student_NV: torch.Tensor, teacher_NV: torch.Tensor, divergence: Divergence
) -> tuple[torch.Tensor, torch.Tensor]:
    """(divergence (N,), its gradient over the student's logits (N, V)); both arguments are normalised log-probs.

    For reverse KL the gradient is p_s (r - KL) with r = log p_s - log p*: `shards.divergence`, every token a bucket.
    """
    value_NV, slope_NV = divergence.terms(student_NV, teacher_NV, torch)
    return value_NV.sum(-1), slope_NV - student_NV.exp() * slope_NV.sum(-1, keepdim=True)


def sparse_divergence(
    student_NV: torch.Tensor, teacher: Teacher, divergence: Divergence
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same over buckets: every kept token, and the tail. Student: normalised log-probs, (N, V)."""
    device = student_NV.device
    kept = support_index(teacher.support_count, teacher.support_ids, device)
    count_N = torch.as_tensor(teacher.support_count, dtype=torch.long, device=device)
    outside_NV = _outside(student_NV, kept)
    student_M, student_tail_N = student_NV[kept], outside_NV.logsumexp(-1)
    value_M, slope_M = divergence.terms(student_M, _tensor(teacher.logprobs, device), torch)
    value_tail_N, slope_tail_N = divergence.terms(student_tail_N, _tensor(teacher.tail_logprob, device), torch)
    value_N, slope_N = (
        torch.segment_reduce(values_M, "sum", lengths=count_N) + tail_N
        for values_M, tail_N in ((value_M, value_tail_N), (slope_M, slope_tail_N))
    )
    # each token of the tail has its share of the tail's mass; where nothing is outside all of it is written over
    pull_N = slope_tail_N - student_tail_N.exp() * slope_N
    gradient_NV = outside_NV.sub_(student_tail_N[:, None]).exp_().mul_(pull_N[:, None])
    gradient_NV[kept] = slope_M - student_M.exp() * slope_N[kept[0]]
    return value_N, gradient_NV


def support_index(count_N: np.ndarray, ids_M: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(position, token id) of every kept token, each (M,): an index into an (N, V) tensor."""
    position_M = np.repeat(np.arange(len(count_N)), count_N)
    return torch.from_numpy(position_M).to(device), torch.from_numpy(ids_M.astype(np.int64)).to(device)


def _outside(logprobs_NV: torch.Tensor, kept: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """A copy with -inf at the kept tokens."""
    return logprobs_NV.index_put(kept, logprobs_NV.new_tensor(-torch.inf))


def _tail(logprobs_NV: torch.Tensor, kept: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Log of the mass outside the support, (N,); -inf where nothing is outside."""
    return _outside(logprobs_NV, kept).logsumexp(-1)


def _tensor(array: Any, device: torch.device) -> torch.Tensor:
    """A numpy array as float64 on a device; a copy, since a cache's arrays are read-only."""
    return torch.from_numpy(np.array(array, dtype=np.float64)).to(device)


def _added(mine: Mapping[Any, Any], theirs: Mapping[Any, Any]) -> dict[Any, Any]:
    assert mine.keys() == theirs.keys(), "sums of one comparison have the same parts"
    return {key: value + theirs[key] for key, value in mine.items()}
