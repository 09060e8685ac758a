"""The smallest and the largest value that a stored, rounded value can stand for. Pure.

Dimensions: N positions, M kept tokens over them.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from shards.format.encoding import compact
from shards.format.plan import Plan
from shards.format.scores import Scores


class Span(NamedTuple):
    """The ends of the intervals, shaped as the scores; ids, counts and D_t are exact, so both ends are equal there."""

    lowest: Scores
    highest: Scores

    def slice(self, start: int, stop: int) -> "Span":
        """The positions start <= t < stop."""
        return Span(self.lowest.slice(start, stop), self.highest.slice(start, stop))


def span(scores: Scores, plan: Plan) -> Span:
    """The intervals around decoded scores: for compact values all that round to the same code, for float32 no width.

    (The last bit of a float32 is far below the difference of two forward passes.) In nats; compact ones float64.
    """
    return Span(scores, scores) if plan.values == "float32" else _compact_span(scores, plan)


def _compact_span(scores: Scores, plan: Plan) -> Span:
    unit_N = compact.units(scores.l1_distance[plan.unit_negative])
    unit_M = np.repeat(unit_N, scores.support_count)
    kept = {role: _logprob_ends(l_M, unit_M) for role, l_M in scores.logprobs.items()}
    following = {role: _logprob_ends(l_N, unit_N) for role, l_N in scores.next_logprob.items()}

    def end(i: int, half_step: float) -> Scores:
        return replace(
            scores,
            logprobs={role: ends[i] for role, ends in kept.items()},
            next_logprob={role: ends[i] for role, ends in following.items()},
            tail_logprob={role: tail_N.astype(np.float64) + half_step for role, tail_N in scores.tail_logprob.items()},
            tail_logpartition={
                pair: partition_NI.astype(np.float64) + half_step
                for pair, partition_NI in scores.tail_logpartition.items()
            },
        )

    half_step = 0.5 / compact.TAIL_STEPS_PER_NAT
    return Span(end(0, -half_step), end(1, half_step))


def _logprob_ends(logprob_M: np.ndarray, unit_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(lowest, highest), each (M,) nats: half a unit of probability around, or half a step of a small log-prob."""
    logprob_M, unit_M = logprob_M.astype(np.float64), unit_M.astype(np.float64)
    prob_M = np.exp(logprob_M)
    change_M = (compact.LINEAR_FROM - 0.5) * unit_M  # higher codes are probabilities, lower ones log-probs
    linear_M, half_step = prob_M >= change_M, 0.5 / compact.STEPS_PER_NAT
    lowest_M = np.where(linear_M, np.log(np.maximum(prob_M, change_M) - unit_M / 2), logprob_M - half_step)
    highest_M = np.where(linear_M, np.log(prob_M + unit_M / 2), np.minimum(logprob_M + half_step, np.log(change_M)))
    # the lowest code also covers everything below it
    bottom_M = np.log(compact.LINEAR_FROM * unit_M) + (1.5 - compact.BIAS - compact.LINEAR_FROM) / compact.STEPS_PER_NAT
    return np.where(logprob_M < bottom_M, -np.inf, lowest_M), highest_M
