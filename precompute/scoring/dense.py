"""Teachers and losses over the whole vocabulary, in float64: what sparse or rounded ones are compared with. Pure.

Dimensions: N positions, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch

from precompute.scoring.partitions import Logprobs, l1_distances
from shards import Divergence, TeacherSpec
from shards.teacher.spec import strength, teacher_logits, token_weight


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseTeacher:
    """A teacher over the whole vocabulary: log p* (N, V), w_t (N,) and lambda_t (N,), float64."""

    logprobs: torch.Tensor
    strength: torch.Tensor
    weight: torch.Tensor


def dense_teacher(logprobs: Logprobs, spec: TeacherSpec) -> DenseTeacher:
    """The teacher of live models, from role -> (N, V)."""
    anchor_NV, dpo_NV, negative_NV = (logprobs[role].double() for role in (spec.anchor, "dpo", spec.negative))
    distance_N = l1_distances({"dpo": dpo_NV, spec.negative: negative_NV})[spec.negative]
    strength_N = strength(spec, distance_N)
    logits_NV = teacher_logits(anchor_NV, dpo_NV - negative_NV, strength_N[:, None])
    return DenseTeacher(logprobs=logits_NV.log_softmax(-1), strength=strength_N, weight=token_weight(spec, strength_N))


def dense_divergence(
    student_NV: torch.Tensor, teacher_NV: torch.Tensor, divergence: Divergence
) -> tuple[torch.Tensor, torch.Tensor]:
    """(divergence (N,), its gradient over the student's logits (N, V)); both arguments are normalised log-probs.

    For reverse KL the gradient is p_s (r - KL) with r = log p_s - log p*: as in `shards.teacher`, every token a bucket.
    """
    value_NV, slope_NV = divergence.terms(student_NV, teacher_NV, torch)
    return value_NV.sum(-1), slope_NV - student_NV.exp() * slope_NV.sum(-1, keepdim=True)


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
