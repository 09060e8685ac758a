"""Strength nodes: the strengths at which the tail's log partition is stored, and its value between them.

F(w) = log sum over v outside the support of exp(l_anchor(v) + w (l_dpo(v) - l_negative(v))) is a log-sum-exp of
functions linear in w, so it is convex and smooth in w. Between nodes it is below the chord and above the extensions
of the two neighbouring chords; the interpolant is a cubic clamped to these bounds. Outside the nodes nothing is known,
and nothing is extrapolated.

Dimensions: N positions, J nodes.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from shards.errors import OptionError

MIN_STRENGTH = 1e-3
"""Added to every adaptive strength, as in the released trainer, so that beta / w_t is finite if D_t = 0. A teacher may
have another one (`TeacherSpec.min_strength`); the nodes have this one."""

LARGEST_DISTANCE = 2.0
"""The largest D_t, of two distributions without a common token."""

DEFAULT_GAIN_NODES = (0.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0)
DEFAULT_STRENGTH_NODES = (0.0, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class StrengthNodes:
    """w_0 = 0 and w_j(t) = max(gains[j] * D_t + 1e-3, strengths[j]), strictly increasing in j at every position.

    Both lists start with 0, are finite and strictly increasing, and have the same length, at least 3. Raises
    OptionError otherwise.
    """

    gains: tuple[float, ...] = DEFAULT_GAIN_NODES
    strengths: tuple[float, ...] = DEFAULT_STRENGTH_NODES

    def __post_init__(self) -> None:
        for name, nodes in (("gain_nodes", self.gains), ("strength_nodes", self.strengths)):
            rising = all(math.isfinite(b) and a < b for a, b in pairwise(nodes))
            if len(nodes) < 3 or nodes[0] != 0 or not rising:
                raise OptionError(f"{name}: expected 0 and at least two more increasing numbers, got {list(nodes)}")
        if len(self.gains) != len(self.strengths):
            raise OptionError(
                f"gain_nodes and strength_nodes: expected lists of one length, got {len(self.gains)} and "
                f"{len(self.strengths)}"
            )
        if self.strengths[1] < MIN_STRENGTH:
            raise OptionError(f"strength_nodes: expected {MIN_STRENGTH:g} or more after 0, got {self.strengths[1]}")

    def __len__(self) -> int:
        return len(self.gains)

    def at(self, l1_distance_N: np.ndarray) -> np.ndarray:
        """The nodes of each position, (N, J) float64, for D_t of shape (N,)."""
        distance_N1 = np.asarray(l1_distance_N, dtype=np.float64)[:, None]
        adaptive_NJ = adaptive_strength(distance_N1, np.asarray(self.gains))
        return np.concatenate([np.zeros_like(distance_N1), np.maximum(adaptive_NJ, self.strengths)[:, 1:]], axis=1)

    def highest_start(self, gain: float) -> float:
        """The largest s, to four decimals, such that gain * D_t + s never exceeds the last node; 0 <= gain <= the last.

        The last node is constant up to D_t = (strengths[-1] - 1e-3) / gains[-1] and rises from there, at least as fast.
        """
        steepest, highest = self.gains[-1], self.strengths[-1]
        found = highest - gain * min((highest - MIN_STRENGTH) / steepest, LARGEST_DISTANCE)
        return max(MIN_STRENGTH, math.floor(found * 1e4) / 1e4)

    def interval(self, l1_distance_N: np.ndarray, strength_N: np.ndarray) -> np.ndarray:
        """j, (N,), such that a strength is between nodes j and j + 1, for D_t of shape (N,)."""
        return _left(self.at(l1_distance_N), strength_N)


def adaptive_strength(l1_distance: Any, gain: Any, min_strength: float = MIN_STRENGTH) -> Any:
    """w_t = gain * D_t + min_strength, the shape of `l1_distance`."""
    return gain * l1_distance + min_strength


def interpolate(
    nodes_NJ: np.ndarray, values_NJ: np.ndarray, strength_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A convex function known at nodes, at a strength between them: (estimate, lower bound, upper bound), (N,).

    At a node all three are the node's value. Rows of -inf (an empty tail) give -inf. The caller has checked
    0 <= strength <= the last node.
    """
    empty_N = np.any(np.isneginf(values_NJ), axis=1)
    values_NJ = np.where(empty_N[:, None], 0.0, values_NJ)
    last = nodes_NJ.shape[1] - 2
    left_N = _left(nodes_NJ, strength_N)
    slope_NI = np.diff(values_NJ, axis=1) / np.diff(nodes_NJ, axis=1)
    x_left, x_right = _take(nodes_NJ, left_N), _take(nodes_NJ, left_N + 1)
    y_left, y_right = _take(values_NJ, left_N), _take(values_NJ, left_N + 1)

    upper_N = y_left + _take(slope_NI, left_N) * (strength_N - x_left)
    before_N = y_left + _take(slope_NI, np.maximum(left_N - 1, 0)) * (strength_N - x_left)
    after_N = y_right + _take(slope_NI, np.minimum(left_N + 1, last)) * (strength_N - x_right)
    lower_N = np.maximum(np.where(left_N > 0, before_N, -np.inf), np.where(left_N < last, after_N, -np.inf))

    lower_N = np.minimum(lower_N, upper_N)  # equal at a node, up to rounding
    estimate_N = np.clip(_cubic(nodes_NJ, values_NJ, strength_N, left_N), lower_N, upper_N)

    def known(found_N: np.ndarray) -> np.ndarray:
        found_N = np.where(strength_N == x_left, y_left, np.where(strength_N == x_right, y_right, found_N))
        return np.where(empty_N, -np.inf, found_N)

    return known(estimate_N), known(lower_N), known(upper_N)


def _left(nodes_NJ: np.ndarray, strength_N: np.ndarray) -> np.ndarray:
    """The node at the lower end of a strength's interval, (N,)."""
    return np.clip(np.sum(nodes_NJ <= strength_N[:, None], axis=1) - 1, 0, nodes_NJ.shape[1] - 2)


def _cubic(nodes_NJ: np.ndarray, values_NJ: np.ndarray, strength_N: np.ndarray, left_N: np.ndarray) -> np.ndarray:
    """Lagrange's polynomial through the four nodes around the interval (through all if there are only three)."""
    width = min(4, nodes_NJ.shape[1])
    first_N = np.clip(left_N - 1, 0, nodes_NJ.shape[1] - width)
    pick_NW = first_N[:, None] + np.arange(width)
    x_NW, y_NW = (np.take_along_axis(array, pick_NW, axis=1) for array in (nodes_NJ, values_NJ))
    total_N = np.zeros_like(strength_N, dtype=np.float64)
    for i in range(width):
        basis_N = y_NW[:, i].astype(np.float64)
        for j in range(width):
            if j != i:
                basis_N = basis_N * (strength_N - x_NW[:, j]) / (x_NW[:, i] - x_NW[:, j])
        total_N += basis_N
    return total_N


def _take(array_NJ: np.ndarray, index_N: np.ndarray) -> np.ndarray:
    return np.take_along_axis(array_NJ, index_N[:, None], axis=1)[:, 0]
