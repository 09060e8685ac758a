"""Samples that are spread evenly over a sequence: of a length that is known, and of one that is not known yet."""

from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np

Item = TypeVar("Item")


def sample_rows(rows: Sequence[Item], count: int) -> list[Item]:
    """Up to `count` rows, evenly spread over the data: the fixed sample that the threshold is set on."""
    picked = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))
    return [rows[i] for i in picked]


class SpreadSample(Generic[Item]):
    """Every n-th of the items that are offered, n doubling as they come: always `count` of them or more, under twice
    as many, as soon as there are that many; nothing for a count of 0."""

    def __init__(self, count: int) -> None:
        self.kept: list[Item] = []
        self._count, self._stride, self._offered = count, 1, 0

    def offer(self, item: Item) -> None:
        if self._count and self._offered % self._stride == 0:
            self.kept.append(item)
            if len(self.kept) == 2 * self._count:
                self.kept = self.kept[::2]
                self._stride *= 2
        self._offered += 1
