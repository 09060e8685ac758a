"""From cached scores to the teacher that a run asked for. Pure; numpy, float64 inside."""

from dataclasses import dataclass

import numpy as np

from shards.nodes import StrengthNodes, interpolate
from shards.scores import Scores, segment_starts
from shards.teacher import TeacherSpec, strength, teacher_logits, token_weight

LOW_STRENGTH = 0.01
"""Below it the models agree: the loss pulls to the anchor there, with a weight of beta / w_t."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """A teacher at N response positions, M kept tokens in all. Float64, nats.

    support_count (N,), support_ids (M,)   as in Scores
    logprobs       (M,)   log p* of the kept tokens
    tail_logprob   (N,)   log of the teacher's mass outside the support; -inf where nothing is outside
    strength       (N,)   w_t
    weight         (N,)   lambda_t, the factor of the position's divergence in the loss
    next_logprob   (N,)   log p* of the actual next token, kept or not
    tail_bound     (N,)   how far the interpolated log partition of the tail may lie off, nats; 0 at a node
    """

    support_count: np.ndarray
    support_ids: np.ndarray
    logprobs: np.ndarray
    tail_logprob: np.ndarray
    strength: np.ndarray
    weight: np.ndarray
    next_logprob: np.ndarray
    tail_bound: np.ndarray


def compose(scores: Scores, spec: TeacherSpec, nodes: StrengthNodes) -> Teacher:
    """Compose the teacher of `spec`. The caller has checked that the cache serves it (`ShardCache.check`)."""
    distance_N = scores.l1_distance[spec.negative].astype(np.float64)
    nodes_NJ = nodes.at(distance_N)
    strength_N = strength(spec, distance_N, highest=nodes_NJ[:, -1])
    anchor_M, dpo_M, negative_M = (
        scores.logprobs[role].astype(np.float64) for role in (spec.anchor, "dpo", spec.negative)
    )
    kept_M = teacher_logits(anchor_M, dpo_M - negative_M, np.repeat(strength_N, scores.support_count))
    next_anchor_N, next_dpo_N, next_negative_N = (
        scores.next_logprob[role].astype(np.float64) for role in (spec.anchor, "dpo", spec.negative)
    )
    next_N = teacher_logits(next_anchor_N, next_dpo_N - next_negative_N, strength_N)

    tail_NJ = np.concatenate(
        [scores.tail_logprob[spec.anchor][:, None], scores.tail_logpartition[spec.pair]], axis=1, dtype=np.float64
    )
    tail_N, lower_N, upper_N = interpolate(nodes_NJ, tail_NJ, strength_N)
    log_partition_N = np.logaddexp(segment_logsumexp(kept_M, scores.support_count), tail_N)
    empty_N = np.isneginf(tail_N)
    return Teacher(
        support_count=scores.support_count,
        support_ids=scores.support_ids,
        logprobs=kept_M - np.repeat(log_partition_N, scores.support_count),
        tail_logprob=tail_N - log_partition_N,
        strength=strength_N,
        weight=token_weight(spec, strength_N),
        next_logprob=next_N - log_partition_N,
        tail_bound=np.where(empty_N, 0.0, np.where(empty_N, 0.0, upper_N) - np.where(empty_N, 0.0, lower_N)),
    )


def segment_logsumexp(values_M: np.ndarray, count_N: np.ndarray) -> np.ndarray:
    """log sum exp over each position's entries, (N,). Every count is at least 1."""
    starts_N = segment_starts(count_N)
    peak_N = np.maximum.reduceat(values_M, starts_N)
    return peak_N + np.log(np.add.reduceat(np.exp(values_M - np.repeat(peak_N, count_N)), starts_N))
