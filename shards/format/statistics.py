"""Statistics of a cache: support sizes, coverage and D_t, in memory that does not grow with the rows."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shards.format import schema
from shards.format.encoding import codec
from shards.format.plan import Plan

QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)


@dataclass(slots=True)
class Histogram:
    """Counts over equal bins of [0, high], with exact mean and extremes; a quantile has an error of one bin at most.

    Bins of width 1 give exact quantiles of whole numbers.
    """

    high: float
    bins: int
    counts: np.ndarray = field(init=False)
    total: float = 0.0
    lowest: float = np.inf
    highest: float = -np.inf

    def __post_init__(self) -> None:
        self.counts = np.zeros(self.bins, dtype=np.int64)

    def merge(self, other: "Histogram") -> None:
        """Add counts and extremes of another with the same bins, but not its total: a float sum has an order."""
        self.counts += other.counts
        self.lowest = min(self.lowest, other.lowest)
        self.highest = max(self.highest, other.highest)

    def add(self, values: np.ndarray) -> None:
        if not len(values):
            return
        index = np.clip(self._bin(values).astype(np.int64), 0, self.bins - 1)
        found = np.bincount(index)  # up to the highest bin only: a record batch leaves most others empty
        self.counts[: len(found)] += found
        self.total += float(values.sum(dtype=np.float64))
        self.lowest = min(self.lowest, float(values.min()))
        self.highest = max(self.highest, float(values.max()))

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        return self.total / self.count

    def quantile(self, q: float) -> float:
        """The lower edge of the bin with the q-quantile, clipped to the observed range."""
        rank = q * (self.counts.sum() - 1)
        bin_index = int(np.searchsorted(np.cumsum(self.counts), rank, side="right"))
        return float(np.clip(self.edge(bin_index), self.lowest, self.highest))

    def edge(self, index: int) -> float:
        """The lower edge of a bin."""
        return index * self.high / self.bins

    def _bin(self, values: np.ndarray) -> np.ndarray:
        return values / self.high * self.bins

    def summary(self) -> dict[str, Any]:
        numbers = {f"p{round(100 * q):02d}": self.quantile(q) for q in QUANTILES}
        stats = {"mean": self.mean, "min": self.lowest, **numbers, "max": self.highest}
        return {name: round(value, 6) for name, value in stats.items()}


@dataclass(slots=True)
class LogHistogram(Histogram):
    """A Histogram with bins equal in the logarithm, from `low` to `high`; the first also has smaller values."""

    low: float = field(kw_only=True)

    def edge(self, index: int) -> float:
        return 0.0 if index == 0 else self.low * (self.high / self.low) ** (index / self.bins)

    def _bin(self, values: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(values, self.low) / self.low) / math.log(self.high / self.low) * self.bins


def add_positions(histograms: Mapping[str, Histogram], columns: Mapping[str, np.ndarray], plan: Plan) -> None:
    """Add the values of one record batch, the flat columns of `position_columns`, to those of `new_histograms`."""
    histograms["support_count"].add(columns[schema.SUPPORT_COUNT])
    for role, tail_N in codec.decode_tails(columns, plan).items():
        coverage = -np.expm1(tail_N.astype(np.float64))
        histograms[f"coverage_{role}"].add(np.clip(coverage, 0.0, 1.0))
    for negative in schema.NEGATIVES:
        name = schema.l1_distance_column(negative)
        if name in columns:
            histograms[name].add(columns[name])


def new_histograms(plan: Plan) -> dict[str, Histogram]:
    distances = [schema.l1_distance_column(n) for n in schema.NEGATIVES if n in plan.roles]
    return {
        "support_count": Histogram(plan.vocabulary_size + 1, plan.vocabulary_size + 1),
        **{f"coverage_{role}": Histogram(1.0, 10_000) for role in plan.roles},
        **{name: Histogram(2.0, 20_000) for name in distances},
    }


def position_columns(plan: Plan) -> tuple[str, ...]:
    """The columns that `add_positions` reads."""
    distances = (schema.l1_distance_column(n) for n in schema.NEGATIVES if n in plan.roles)
    return tuple(dict.fromkeys([schema.SUPPORT_COUNT, *distances, *plan.tail_columns()]))


def distribution_table(statistics: Mapping[str, Mapping[str, float]]) -> str:
    """The distributions of a manifest as a table: a line each, with mean and quantiles."""
    heads = list(next(iter(statistics.values())))
    width = max(len(name) for name in statistics)
    lines = [" " * width + "".join(f"{head:>9}" for head in heads)]
    for name, numbers in statistics.items():
        cells = (f"{n:9.1f}" if name == "support_count" else f"{n:9.4f}" for n in numbers.values())
        lines.append(f"{name:<{width}}" + "".join(cells))
    return "\n".join(lines)
