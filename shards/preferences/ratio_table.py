"""Tables of log p*_t(y_t) - l_ref(y_t) as a function of the strength, for the fit of a learned strength.

Each position's term and its derivative are tabulated once at its strength nodes and half way between them, and
interpolated by a cubic. So the fit never reads a kept token.

Dimensions: N response positions, M kept tokens over all positions, Q = 2 J - 1 knots of J strength nodes, R responses,
P pairs. Nats.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from shards.format.nodes import MIN_STRENGTH, StrengthNodes, interpolate
from shards.format.schema import Pair
from shards.format.scores import Scores, segment_starts
from shards.teacher.spec import learned_strength, teacher_logits


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioTable:
    """f(w) = log p*_t(y_t) - l_ref(y_t) of the actual next token y_t, as a function of the strength.

    knots, values, slopes   (N, Q)   strengths from 0 to the last node, f and df/dw there
    distance                (N,)     D_t
    response                (N,)     the response of each position, ascending from 0
    min_strength            the spec's, which every learned strength exceeds
    """

    knots: np.ndarray
    values: np.ndarray
    slopes: np.ndarray
    distance: np.ndarray
    response: np.ndarray
    min_strength: float = MIN_STRENGTH

    def strength(self, offset: float, slope: float) -> np.ndarray:
        """The learned strength of every position, (N,), within the knots."""
        return learned_strength(self.distance, offset, slope, self.knots[:, -1], self.min_strength)

    @property
    def num_responses(self) -> int:
        return int(self.response[-1]) + 1


Block: TypeAlias = tuple[RatioTable, np.ndarray]
"""Some pairs: the table of their responses, and per pair the numbers of its chosen and rejected one in it, (P, 2)."""


def tabulate(scores: Scores, sizes_R: np.ndarray, pair: Pair, nodes: StrengthNodes) -> RatioTable:
    """The table of R responses, concatenated in `scores`, with sizes_R positions each, all at least 1.

    f is exact at a node; half way between nodes it equals the composed teacher's. Its derivative is exact for the kept
    tokens; for the tail, whose share is small, it is that of the parabola through the neighbouring knots.
    """
    anchor_M, dpo_M, negative_M = (scores.logprobs[r].astype(np.float64) for r in (pair.anchor, "dpo", pair.negative))
    difference_M = dpo_M - negative_M
    next_anchor_N, next_dpo_N, next_negative_N, next_reference_N = (
        scores.next_logprob[r].astype(np.float64) for r in (pair.anchor, "dpo", pair.negative, "reference")
    )
    next_difference_N = next_dpo_N - next_negative_N
    distance_N = scores.l1_distance[pair.negative].astype(np.float64)
    knots_NQ = knots_at(nodes, distance_N)
    tail_NQ = _tails(scores, pair, nodes.at(distance_N), knots_NQ)
    tail_slopes_NQ = _slopes(knots_NQ, np.where(np.isneginf(tail_NQ), 0.0, tail_NQ))

    starts_N = segment_starts(scores.support_count)
    values_NQ, slopes_NQ = np.empty_like(knots_NQ), np.empty_like(knots_NQ)
    for q in range(knots_NQ.shape[1]):
        strength_N, tail_N = knots_NQ[:, q], tail_NQ[:, q]
        kept_M = teacher_logits(anchor_M, difference_M, np.repeat(strength_N, scores.support_count))
        peak_N = np.maximum.reduceat(kept_M, starts_N)
        kept_M -= np.repeat(peak_N, scores.support_count)
        np.exp(kept_M, out=kept_M)
        log_partition_N = peak_N + np.logaddexp(np.log(np.add.reduceat(kept_M, starts_N)), tail_N - peak_N)
        kept_M *= difference_M
        mean_N = np.add.reduceat(kept_M, starts_N) * np.exp(peak_N - log_partition_N)
        mean_N += np.exp(tail_N - log_partition_N) * tail_slopes_NQ[:, q]
        values_NQ[:, q] = teacher_logits(next_anchor_N, next_difference_N, strength_N) - next_reference_N
        values_NQ[:, q] -= log_partition_N
        slopes_NQ[:, q] = next_difference_N - mean_N
    response_N = np.repeat(np.arange(len(sizes_R)), sizes_R)
    return RatioTable(knots=knots_NQ, values=values_NQ, slopes=slopes_NQ, distance=distance_N, response=response_N)


def knots_at(nodes: StrengthNodes, distance_N: np.ndarray) -> np.ndarray:
    """The nodes of positions with these D_t, and the strengths half way between them, ascending, (N, Q)."""
    nodes_NJ = nodes.at(distance_N)
    knots_NQ = np.repeat(nodes_NJ, 2, axis=1)[:, :-1]
    knots_NQ[:, 1::2] = (nodes_NJ[:, :-1] + nodes_NJ[:, 1:]) / 2
    return knots_NQ


def _tails(scores: Scores, pair: Pair, nodes_NJ: np.ndarray, knots_NQ: np.ndarray) -> np.ndarray:
    """The tail's log partition at the knots, (N, Q): stored at nodes, interpolated half way between them."""
    tail_NJ = np.concatenate([scores.tail_logprob[pair.anchor][:, None], scores.tail_logpartition[pair]], axis=1)
    tail_NJ = tail_NJ.astype(np.float64)
    tail_NQ = np.repeat(tail_NJ, 2, axis=1)[:, :-1]
    for q in range(1, knots_NQ.shape[1], 2):
        tail_NQ[:, q], _, _ = interpolate(nodes_NJ, tail_NJ, knots_NQ[:, q])
    return tail_NQ


def cubic(table: RatioTable, strength_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """f, df/dw and d2f/dw2 at strengths within the knots, each (N,), by Hermite's cubic between two knots."""
    left_N = np.sum(table.knots[:, 1:-1] <= strength_N[:, None], axis=1)
    rows_N = np.arange(len(left_N))
    x_N, y_left, y_right, m_left, m_right = (
        array[rows_N, column].astype(np.float64, copy=False)
        for array, column in (
            (table.knots, left_N),
            (table.values, left_N), (table.values, left_N + 1),
            (table.slopes, left_N), (table.slopes, left_N + 1),
        )
    )  # fmt: skip
    width_N = table.knots[rows_N, left_N + 1] - x_N
    share_N = (strength_N - x_N) / width_N
    linear_N = width_N * m_left
    square_N = 3 * (y_right - y_left) - width_N * (2 * m_left + m_right)
    cube_N = 2 * (y_left - y_right) + width_N * (m_left + m_right)
    return (
        y_left + share_N * (linear_N + share_N * (square_N + share_N * cube_N)),
        (linear_N + share_N * (2 * square_N + 3 * share_N * cube_N)) / width_N,
        (2 * square_N + 6 * share_N * cube_N) / width_N**2,
    )


def _slopes(x_NQ: np.ndarray, y_NQ: np.ndarray) -> np.ndarray:
    """dy/dx at the points, (N, Q), of the parabola through each and its neighbours."""
    width_NI, secant_NI = np.diff(x_NQ, axis=1), np.diff(y_NQ, axis=1) / np.diff(x_NQ, axis=1)
    left, right = width_NI[:, :-1], width_NI[:, 1:]
    inner = (right * secant_NI[:, :-1] + left * secant_NI[:, 1:]) / (left + right)
    first, last = 2 * secant_NI[:, :1] - inner[:, :1], 2 * secant_NI[:, -1:] - inner[:, -1:]
    return np.concatenate([first, inner, last], axis=1)
