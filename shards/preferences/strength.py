"""Fits a learned strength w_t = min_strength + softplus(a + b D_t): (a, b) of the highest Bradley-Terry likelihood.

The log-likelihood of a pair is log sigmoid(R(chosen) - R(rejected)), R(y) = sum_t [log p*_t(y_t) - l_ref(y_t)]: the
teacher's own log-ratio, without beta, read from tables (`ratio_table`). Likelihood and derivatives are sums over
blocks of whole pairs, so only one block at a time is in memory.

Dimensions: N response positions, R responses, P pairs. Nats.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np

from shards.errors import DataError
from shards.format.nodes import StrengthNodes
from shards.preferences.ratio_table import Block, RatioTable, cubic

MAX_STEPS = 100
STEP_TOLERANCE = 1e-7
"""A smaller step changes none of the kept decimals, and testing it would cost a pass over all positions."""
DECIMALS = 4
"""Fitted numbers are rounded to the printed decimals: they can be typed in, and are equal on every machine."""
SMALLEST_OFFSET = -10.0
"""softplus(-10) = 5e-5 is small compared with the default min_strength, 1e-3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Likelihood:
    """The log-likelihood summed over pairs, nats, with gradient (2,) and Hessian (2, 2) in (a, b)."""

    value: float
    gradient: np.ndarray
    hessian: np.ndarray

    def __add__(self, other: "Likelihood") -> "Likelihood":
        return Likelihood(
            value=self.value + other.value,
            gradient=self.gradient + other.gradient,
            hessian=self.hessian + other.hessian,
        )


def likelihood(table: RatioTable, pairs_P2: np.ndarray, offset: float, slope: float) -> Likelihood:
    """Sum over pairs of log sigmoid(R(chosen) - R(rejected)) at (a, b) = (offset, slope), with its derivatives.

    pairs_P2: the numbers of each pair's chosen and rejected response in the table. The strength is clipped at the last
    node: from there on a position's derivatives are 0.
    """
    strength_N = table.strength(offset, slope)
    value_N, first_N, second_N = cubic(table, strength_N)
    inside_N = strength_N < table.knots[:, -1]
    rise_N = np.where(inside_N, np.exp(-np.logaddexp(0.0, -(offset + slope * table.distance))), 0.0)  # softplus'
    second_N = second_N * rise_N**2 + first_N * rise_N * (1 - rise_N)
    first_N = first_N * rise_N

    margin_P = _margins(table, pairs_P2, value_N)
    wrong_P = np.exp(-np.logaddexp(0.0, margin_P))  # sigmoid(-margin), the slope of the likelihood in the margin
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


def total_likelihood(blocks: Iterable[Block], offset: float, slope: float) -> Likelihood:
    """The likelihood of all pairs of some blocks, in their order."""
    first, *others = (likelihood(table, pairs_P2, offset, slope) for table, pairs_P2 in blocks)
    return sum(others, first)


def margins(table: RatioTable, pairs_P2: np.ndarray, strength_N: np.ndarray) -> np.ndarray:
    """R(chosen) - R(rejected) of each pair at strengths within the knots, (P,)."""
    return _margins(table, pairs_P2, cubic(table, strength_N)[0])


def log_sigmoid(margin: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0.0, -margin)


def region(nodes: StrengthNodes) -> np.ndarray:
    """The search region of (a, b), (2, 2): the lowest and the highest value of both.

    Without it, preferences that every strength or none gets right would let the likelihood grow without limit. It
    covers strengths between zero and the last node: a from -10 to 10 or to the last strength node, b up to twice the
    last gain or strength node, of either sign.
    """
    steepest = 2 * max(nodes.gains[-1], nodes.strengths[-1])
    return np.array([[SMALLEST_OFFSET, -steepest], [max(10.0, nodes.strengths[-1]), steepest]])


def fit_learned(blocks: Iterable[Block], nodes: StrengthNodes) -> tuple[float, float]:
    """(a, b) of the highest likelihood in `region`: the best of a coarse grid, then damped Newton steps; four decimals.

    blocks is read once for the grid and once or more per step, about ten times in all. The result is a pure function of
    the values, equal to the last bit on every machine. Raises DataError if no strength changes the likelihood or if it
    is not finite.
    """
    region_22 = region(nodes)
    point_2 = _best_of_grid(blocks, nodes)
    here = total_likelihood(blocks, *point_2)
    for _ in range(MAX_STEPS):
        following = _newton_step(blocks, point_2, here, region_22)
        if following is None:
            break
        point_2, here = following
    offset, slope = (round(float(value), DECIMALS) + 0.0 for value in point_2)  # no negative zero
    return offset, slope


def _best_of_grid(blocks: Iterable[Block], nodes: StrengthNodes) -> np.ndarray:
    """The grid point with the highest likelihood, (2,), in one pass. Raises DataError."""
    points = _grid(nodes)
    totals, pairs = np.zeros(len(points)), 0
    for table, pairs_P2 in blocks:
        if not (np.isfinite(table.values).all() and np.isfinite(table.slopes).all()):
            raise DataError("expected finite log-probs in the cached pairs, got others; run python -m shards.verify")
        strengths = (table.strength(*point) for point in points)
        totals += [log_sigmoid(margins(table, pairs_P2, strength_N)).sum() for strength_N in strengths]
        pairs += len(pairs_P2)
    if np.ptp(totals) <= 1e-9 * pairs:
        raise DataError("expected pairs that the strength matters to, got none: dpo and negative agree everywhere")
    return np.array(points[int(np.argmax(totals))])


def _grid(nodes: StrengthNodes) -> list[tuple[float, float]]:
    """Offsets from a strength of almost zero to the last node, slopes from negative to the last gain."""
    highest, steepest = nodes.strengths[-1], nodes.gains[-1]
    offsets = (-8.0, -4.0, -2.0, -0.5, 0.5, highest / 2, highest)
    return list(product(offsets, (share * steepest for share in (-1.0, -1 / 3, 0.0, 1 / 6, 1 / 3, 2 / 3, 1.0))))


def _newton_step(
    blocks: Iterable[Block], point_2: np.ndarray, here: Likelihood, region_22: np.ndarray
) -> tuple[np.ndarray, Likelihood] | None:
    """A point with a higher likelihood, and that likelihood; None if there is none. Respects the bounds."""
    low_2, high_2 = region_22
    held_2 = ((point_2 <= low_2) & (here.gradient <= 0)) | ((point_2 >= high_2) & (here.gradient >= 0))
    free = np.flatnonzero(~held_2)
    if not len(free) or not here.gradient[free].any():
        return None
    curvature, axes = np.linalg.eigh(here.hessian[np.ix_(free, free)])
    size = np.abs(curvature)  # goes uphill even if the likelihood is not concave
    direction_2 = np.zeros(2)
    direction_2[free] = axes @ ((axes.T @ here.gradient[free]) / np.maximum(size, 1e-12 * size.max() + 1e-300))
    for halvings in range(50):
        tried_2 = np.clip(point_2 + direction_2 / 2**halvings, low_2, high_2)
        if np.abs(tried_2 - point_2).max() < STEP_TOLERANCE:
            return None
        needed = 1e-4 * max(0.0, float(here.gradient @ (tried_2 - point_2)))
        there = total_likelihood(blocks, *tried_2)
        if there.value > here.value + needed:
            return tried_2, there
    return None


def _margins(table: RatioTable, pairs_P2: np.ndarray, values_N: np.ndarray) -> np.ndarray:
    sums_R = np.bincount(table.response, values_N, minlength=table.num_responses)
    return sums_R[pairs_P2[:, 0]] - sums_R[pairs_P2[:, 1]]
