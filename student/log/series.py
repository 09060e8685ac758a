"""Series: one figure over the steps of a run, thinned to a number of points without losing its extremes. Pure.

Dimensions: P logged points, G groups of consecutive points.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A figure over the steps.

    steps   (G,), int64, rising: the last step of each group
    mean, low, high   (G,), float64: of the group's values that are numbers; NaN where none is
    of_each   points in a group; 1 where nothing was thinned, and then mean, low and high are the values
    """

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    of_each: int = 1

    @property
    def first(self) -> float:
        return float(self.mean[0])

    @property
    def last(self) -> float:
        return float(self.mean[-1])


def history(entries: Iterable[Mapping[str, Any]]) -> dict[str, Series]:
    """Name -> series of all numbers in a Trainer's log_history. Where a step is there twice, the last one counts."""
    found: dict[str, dict[int, float]] = {}
    for entry in entries:
        for name, value in entry.items():
            if name != "step" and isinstance(value, Real) and not isinstance(value, bool):
                found.setdefault(name, {})[int(entry["step"])] = float(value)
    return {name: _series(dict(sorted(at.items()))) for name, at in found.items()}


def _series(at: Mapping[int, float]) -> Series:
    values = np.fromiter(at.values(), np.float64, len(at))
    values[~np.isfinite(values)] = np.nan
    return Series(steps=np.fromiter(at, np.int64, len(at)), mean=values, low=values, high=values)


def thinned(series: Series, limit: int) -> Series:
    """The series in at most `limit` groups of consecutive points: of each its mean, its lowest and highest value."""
    points = len(series.steps)
    of_each = -(-points // limit)
    if of_each <= 1:
        return series
    starts = np.arange(0, points, of_each)
    there = np.isfinite(series.mean)
    counts = np.add.reduceat(there, starts, dtype=np.int64)
    sums = np.add.reduceat(np.where(there, series.mean, 0.0), starts)
    mean = np.divide(sums, counts, out=np.full(len(starts), np.nan), where=counts > 0)
    return Series(
        steps=series.steps[np.minimum(starts + of_each, points) - 1],
        mean=mean,
        low=np.fmin.reduceat(series.low, starts),
        high=np.fmax.reduceat(series.high, starts),
        of_each=of_each,
    )
