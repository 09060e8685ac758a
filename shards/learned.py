"""The fit of a learned strength: w_t = 1e-3 + softplus(a + b D_t), (a, b) of the highest Bradley-Terry likelihood.

A pair's log-likelihood is log sigmoid(R(chosen) - R(rejected)), R(y) = sum_t [log p*_t(y_t) - l_ref(y_t)]: no beta, the
teacher's own log-ratio. R depends on (a, b) through the strengths alone, so each position's term is tabulated once at
its strength nodes and half way between them, with its derivative, and read off a cubic in between; the fit then never
touches a kept token.

Dimensions: N response positions, M kept tokens over all positions, Q = 2 J - 1 knots of J strength nodes, R responses,
P pairs. Nats.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from shards.compose import segment_logsumexp
from shards.errors import DataError
from shards.nodes import StrengthNodes, interpolate
from shards.schema import Pair
from shards.scores import Scores, segment_starts
from shards.teacher import learned_strength, teacher_logits

MAX_STEPS = 100
STEP_TOLERANCE = 1e-7
DECIMALS = 4
"""The fitted numbers are rounded to what is printed: they can be typed in, and another machine's exp gives the same."""
SMALLEST_OFFSET = -10.0
"""softplus(-10) = 5e-5, little beside the 1e-3 that every strength has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioTable:
    """f(w) = log p*_t(y_t) - l_ref(y_t) of the actual next token y_t, as a function of the strength. Float64.

    knots, values, slopes   (N, Q)   strengths from 0 to the last node, f and df/dw there
    distance                (N,)     D_t
    response                (N,)     which response the position is of, ascending from 0
    """

    knots: np.ndarray
    values: np.ndarray
    slopes: np.ndarray
    distance: np.ndarray
    response: np.ndarray

    @property
    def num_responses(self) -> int:
        return int(self.response[-1]) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Likelihood:
    """The log-likelihood of the pairs, summed, nats, with gradient (2,) and Hessian (2, 2) over (a, b)."""

    value: float
    gradient: np.ndarray
    hessian: np.ndarray


def tabulate(scores: Scores, sizes_R: np.ndarray, pair: Pair, nodes: StrengthNodes) -> RatioTable:
    """The table of R responses that lie one after the other in `scores`, of sizes_R positions each, all at least 1.

    At a node f is exact, half way between nodes it is what a composed teacher has. Its derivative is exact on the kept
    tokens; the tail's, whose share is small, is that of the parabola through the neighbouring knots.
    """
    anchor_M, dpo_M, negative_M = (scores.logprobs[r].astype(np.float64) for r in (pair.anchor, "dpo", pair.negative))
    difference_M = dpo_M - negative_M
    next_anchor_N, next_dpo_N, next_negative_N, next_reference_N = (
        scores.next_logprob[r].astype(np.float64) for r in (pair.anchor, "dpo", pair.negative, "reference")
    )
    next_difference_N = next_dpo_N - next_negative_N
    distance_N = scores.l1_distance[pair.negative].astype(np.float64)
    knots_NQ, tail_NQ = _knots(scores, pair, nodes.at(distance_N))
    tail_slopes_NQ = _slopes(knots_NQ, np.where(np.isneginf(tail_NQ), 0.0, tail_NQ))

    values_NQ, slopes_NQ = np.empty_like(knots_NQ), np.empty_like(knots_NQ)
    for q in range(knots_NQ.shape[1]):
        strength_N, tail_N = knots_NQ[:, q], tail_NQ[:, q]
        kept_M = teacher_logits(anchor_M, difference_M, np.repeat(strength_N, scores.support_count))
        log_partition_N = np.logaddexp(segment_logsumexp(kept_M, scores.support_count), tail_N)
        prob_M = np.exp(kept_M - np.repeat(log_partition_N, scores.support_count))
        mean_N = np.add.reduceat(prob_M * difference_M, segment_starts(scores.support_count))
        mean_N += np.exp(tail_N - log_partition_N) * tail_slopes_NQ[:, q]
        values_NQ[:, q] = teacher_logits(next_anchor_N, next_difference_N, strength_N) - next_reference_N
        values_NQ[:, q] -= log_partition_N
        slopes_NQ[:, q] = next_difference_N - mean_N
    response_N = np.repeat(np.arange(len(sizes_R)), sizes_R)
    return RatioTable(knots=knots_NQ, values=values_NQ, slopes=slopes_NQ, distance=distance_N, response=response_N)


def _knots(scores: Scores, pair: Pair, nodes_NJ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nodes and the strengths half way between them, ascending, and the tail's log partition there, (N, Q) each."""
    tail_NJ = np.concatenate([scores.tail_logprob[pair.anchor][:, None], scores.tail_logpartition[pair]], axis=1)
    tail_NJ = tail_NJ.astype(np.float64)
    knots_NQ = np.repeat(nodes_NJ, 2, axis=1)[:, :-1]
    tail_NQ = np.repeat(tail_NJ, 2, axis=1)[:, :-1]
    knots_NQ[:, 1::2] = (nodes_NJ[:, :-1] + nodes_NJ[:, 1:]) / 2
    for q in range(1, knots_NQ.shape[1], 2):
        tail_NQ[:, q], _, _ = interpolate(nodes_NJ, tail_NJ, knots_NQ[:, q])
    return knots_NQ, tail_NQ


def concatenate_tables(tables: Sequence[RatioTable]) -> RatioTable:
    """One table of all the responses of `tables`, in order."""
    firsts = np.cumsum([0, *(table.num_responses for table in tables[:-1])])
    return RatioTable(
        knots=np.concatenate([table.knots for table in tables]),
        values=np.concatenate([table.values for table in tables]),
        slopes=np.concatenate([table.slopes for table in tables]),
        distance=np.concatenate([table.distance for table in tables]),
        response=np.concatenate([table.response + first for table, first in zip(tables, firsts, strict=True)]),
    )


def likelihood(table: RatioTable, pairs_P2: np.ndarray, offset: float, slope: float) -> Likelihood:
    """Sum over pairs of log sigmoid(R(chosen) - R(rejected)) at (a, b) = (offset, slope), with its derivatives.

    pairs_P2: the chosen and the rejected response of each pair, as the table counts them. The strength's bound is a
    kink: beyond it a position's derivatives are 0.
    """
    strength_N = learned_strength(table.distance, offset, slope, table.knots[:, -1])
    value_N, first_N, second_N = _cubic(table, strength_N)
    inside_N = strength_N < table.knots[:, -1]
    rise_N = np.where(inside_N, np.exp(-np.logaddexp(0.0, -(offset + slope * table.distance))), 0.0)  # softplus'
    second_N = second_N * rise_N**2 + first_N * rise_N * (1 - rise_N)
    first_N = first_N * rise_N

    margin_P = _margins(table, pairs_P2, value_N)
    wrong_P = np.exp(-np.logaddexp(0.0, margin_P))  # sigmoid(-margin), the likelihood's slope in the margin
    slope_P2 = np.stack([_margins(table, pairs_P2, first_N * table.distance**k) for k in (0, 1)], axis=1)
    outer_22 = (slope_P2[:, :, None] * slope_P2[:, None, :] * (wrong_P * (1 - wrong_P))[:, None, None]).sum(axis=0)
    bend_0, bend_1, bend_2 = (
        float((wrong_P * _margins(table, pairs_P2, second_N * table.distance**k)).sum()) for k in (0, 1, 2)
    )
    return Likelihood(
        value=float(log_sigmoid(margin_P).sum()),
        gradient=(wrong_P[:, None] * slope_P2).sum(axis=0),
        hessian=np.array([[bend_0, bend_1], [bend_1, bend_2]]) - outer_22,
    )


def margins(table: RatioTable, pairs_P2: np.ndarray, strength_N: np.ndarray) -> np.ndarray:
    """R(chosen) - R(rejected) of each pair at strengths inside the knots, (P,)."""
    return _margins(table, pairs_P2, _cubic(table, strength_N)[0])


def log_sigmoid(margin: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0.0, -margin)


def region(nodes: StrengthNodes) -> np.ndarray:
    """Where (a, b) is looked for, (2, 2): the lowest and the highest of both.

    Preferences that any strength, or none, gets right leave the likelihood rising towards infinity. Strengths between
    nothing and the last node have their (a, b) inside: a from -10 to 10 or the last strength node, b of twice the last
    gain or strength node at most, of either sign.
    """
    steepest = 2 * max(nodes.gains[-1], nodes.strengths[-1])
    return np.array([[SMALLEST_OFFSET, -steepest], [max(10.0, nodes.strengths[-1]), steepest]])


def fit_learned(table: RatioTable, pairs_P2: np.ndarray, nodes: StrengthNodes) -> tuple[float, float]:
    """(a, b) of the highest likelihood in `region`: the best of a coarse grid, then damped Newton steps; four decimals.

    A pure function of the values, the same to the last bit wherever they are. Raises DataError where no strength
    changes the likelihood, or where it is not finite.
    """
    if not (np.isfinite(table.values).all() and np.isfinite(table.slopes).all()):
        raise DataError("expected finite log-probs in the cached pairs, got others; run python -m shards.verify")
    low_2, high_2 = region(nodes)
    found = {point: likelihood(table, pairs_P2, *point).value for point in _grid(nodes)}
    values = np.array(list(found.values()))
    if np.ptp(values) <= 1e-9 * len(pairs_P2):
        raise DataError("expected pairs that the strength matters to, got none: dpo and negative agree everywhere")
    point_2 = np.array(max(found, key=lambda point: found[point]))
    for _ in range(MAX_STEPS):
        following_2 = _newton_step(table, pairs_P2, point_2, low_2, high_2)
        moved, point_2 = np.abs(following_2 - point_2).max(), following_2
        if moved < STEP_TOLERANCE:
            break
    offset, slope = (round(float(value), DECIMALS) + 0.0 for value in point_2)  # no negative zero
    return offset, slope


def _grid(nodes: StrengthNodes) -> list[tuple[float, float]]:
    """Offsets from a strength of almost nothing to the last node, slopes from falling to the last gain."""
    highest, steepest = nodes.strengths[-1], nodes.gains[-1]
    offsets = (-8.0, -4.0, -2.0, -0.5, 0.5, highest / 2, highest)
    return list(product(offsets, (share * steepest for share in (-1.0, -1 / 3, 0.0, 1 / 6, 1 / 3, 2 / 3, 1.0))))


def _newton_step(
    table: RatioTable, pairs_P2: np.ndarray, point_2: np.ndarray, low_2: np.ndarray, high_2: np.ndarray
) -> np.ndarray:
    """The next point, of a higher likelihood; the same one where there is none. A bound that is pushed at is kept."""
    here = likelihood(table, pairs_P2, *point_2)
    held_2 = ((point_2 <= low_2) & (here.gradient <= 0)) | ((point_2 >= high_2) & (here.gradient >= 0))
    free = np.flatnonzero(~held_2)
    if not len(free) or not here.gradient[free].any():
        return point_2
    curvature, axes = np.linalg.eigh(here.hessian[np.ix_(free, free)])
    size = np.abs(curvature)  # uphill also where the likelihood is not concave
    direction_2 = np.zeros(2)
    direction_2[free] = axes @ ((axes.T @ here.gradient[free]) / np.maximum(size, 1e-12 * size.max() + 1e-300))
    for halvings in range(50):
        tried_2 = np.clip(point_2 + direction_2 / 2**halvings, low_2, high_2)
        needed = 1e-4 * max(0.0, float(here.gradient @ (tried_2 - point_2)))
        if likelihood(table, pairs_P2, *tried_2).value > here.value + needed:
            return tried_2
    return point_2


def _margins(table: RatioTable, pairs_P2: np.ndarray, values_N: np.ndarray) -> np.ndarray:
    sums_R = np.bincount(table.response, values_N, minlength=table.num_responses)
    return sums_R[pairs_P2[:, 0]] - sums_R[pairs_P2[:, 1]]


def _cubic(table: RatioTable, strength_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """f, df/dw and d2f/dw2 at strengths inside the knots, each (N,): Hermite's cubic between two of them."""
    left_N = np.sum(table.knots[:, 1:-1] <= strength_N[:, None], axis=1)
    rows_N = np.arange(len(left_N))
    x_N, y_left, y_right, m_left, m_right = (
        array[rows_N, column]
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
