"""compose: builds the teacher of a run from cached scores. Pure; numpy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shards.format.nodes import StrengthNodes, interpolate
from shards.format.schema import Role
from shards.format.scores import Scores, segment_starts
from shards.teacher.spec import TeacherSpec, strength, teacher_logits, token_weight

LOW_STRENGTH = 0.01
"""Below this strength the models agree: the loss pulls to the anchor there, with a weight of beta / w_t."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Teacher:
    """A teacher at N response positions with M kept tokens in all. Nats, float64; logprobs may be float32.

    support_count (N,), support_ids (M,)   as in Scores
    logprobs       (M,)   log p* of the kept tokens
    tail_logprob   (N,)   log of the teacher's mass outside the support; -inf if nothing is outside
    strength       (N,)   w_t
    weight         (N,)   lambda_t, the factor of the position's divergence in the loss
    next_logprob   (N,)   log p* of the actual next token, kept or not; None if the scores have no next tokens
    tail_bound     (N,)   error bound of the interpolated log partition of the tail, nats; 0 at a node
    """

    support_count: np.ndarray
    support_ids: np.ndarray
    logprobs: np.ndarray
    tail_logprob: np.ndarray
    strength: np.ndarray
    weight: np.ndarray
    next_logprob: np.ndarray | None
    tail_bound: np.ndarray

    def __repr__(self) -> str:
        facts = {
            "w": self.strength.mean(),
            "lambda": self.weight.mean(),
            "mass outside the kept tokens": np.exp(self.tail_logprob).mean(),
        }
        means = ", ".join(f"{name} {mean:.3g}" for name, mean in facts.items()) if len(self.strength) else "none"
        counts = f"{len(self.support_count):,} positions, {len(self.support_ids):,} kept tokens"
        return f"Teacher({counts}; means: {means})"

    def _repr_html_(self) -> str:
        """Quantiles over the positions."""
        rows = {"strength w": self.strength, "weight lambda": self.weight, "mass outside": np.exp(self.tail_logprob)}
        shares = (0.0, 0.1, 0.5, 0.9, 1.0)
        head = "".join(f"<th>{share:.0%}</th>" for share in shares)
        lines = [
            f"<tr><th>{name}</th>" + "".join(f"<td>{np.quantile(values, s):.4g}</td>" for s in shares) + "</tr>"
            for name, values in rows.items()
            if len(values)
        ]
        counts = f"{len(self.support_count):,} positions, {len(self.support_ids):,} kept tokens"
        return f"<table><caption>Teacher: {counts}</caption><tr><th></th>{head}</tr>{''.join(lines)}</table>"


def compose(scores: Scores, spec: TeacherSpec, nodes: StrengthNodes, *, dtype: Any = np.float64) -> Teacher:
    """Compose the teacher of `spec`. The caller has checked that the cache serves it (`ShardCache.check`).

    dtype: of arrays with a value per kept token; arrays with a value per position are always float64.
    """
    count_N, distance_N = scores.support_count, scores.l1_distance[spec.negative].astype(np.float64)
    nodes_NJ = nodes.at(distance_N)
    strength_N = strength(spec, distance_N, highest=nodes_NJ[:, -1])
    tail_NJ = np.concatenate(
        [scores.tail_logprob[spec.anchor][:, None], scores.tail_logpartition[spec.pair]], axis=1, dtype=np.float64
    )
    tail_N, lower_N, upper_N = interpolate(nodes_NJ, tail_NJ, strength_N)

    # subtract the position's largest teacher logit, so that float32 rounds small numbers
    kept_M = _logits(scores.logprobs, spec, np.repeat(strength_N.astype(dtype), count_N), dtype)
    starts_N = segment_starts(count_N)
    peak_N = np.maximum.reduceat(kept_M, starts_N)
    kept_M -= np.repeat(peak_N, count_N)
    kept_mass_N = np.add.reduceat(np.exp(kept_M), starts_N).astype(np.float64)
    peak_N = peak_N.astype(np.float64)
    tail_N -= peak_N
    log_partition_N = np.logaddexp(np.log(kept_mass_N), tail_N)
    kept_M -= np.repeat(log_partition_N.astype(dtype), count_N)
    empty_N = np.isneginf(tail_N)
    return Teacher(
        support_count=count_N,
        support_ids=scores.support_ids,
        logprobs=kept_M,
        tail_logprob=tail_N - log_partition_N,
        strength=strength_N,
        weight=token_weight(spec, strength_N),
        next_logprob=_logits(scores.next_logprob, spec, strength_N, np.float64) - peak_N - log_partition_N
        if scores.next_logprob
        else None,
        tail_bound=np.where(empty_N, 0.0, np.where(empty_N, 0.0, upper_N) - np.where(empty_N, 0.0, lower_N)),
    )


def _logits(logprobs: Mapping[Role, np.ndarray], spec: TeacherSpec, strength_M: np.ndarray, dtype: Any) -> np.ndarray:
    anchor_M, dpo_M, negative_M = (
        logprobs[role].astype(dtype, copy=False) for role in (spec.anchor, "dpo", spec.negative)
    )
    return teacher_logits(anchor_M, dpo_M - negative_M, strength_M)
