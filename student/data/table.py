"""ShardTable: which shards the rows of a data set are in, and how large they are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shards import ShardCache
from student.data.order import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTable:
    """The shards of one or more caches that have rows of a data set, in the order of its rows; (shards,) each.

    ends    end of a shard's rows in the data set
    cache   number of its cache;  number   its own number there
    size    of its file, bytes
    """

    ends: np.ndarray
    cache: np.ndarray
    number: np.ndarray
    size: np.ndarray

    @classmethod
    def of(cls, caches: Sequence[ShardCache], wanted: Sequence[np.ndarray]) -> "ShardTable":
        """wanted: for each cache the rows that the data set has of it, ascending."""
        begin, tables = 0, []
        for i, (cache, rows) in enumerate(zip(caches, wanted, strict=True)):
            first_rows = np.array([shard.first_row for shard in cache.plan.shards], rows.dtype)
            counts = np.diff(np.searchsorted(rows, first_rows), append=len(rows))
            (number,) = np.nonzero(counts)
            sizes = np.array([entry.bytes for entry in cache.manifest.entries], np.int64)[number]
            tables.append((begin + np.cumsum(counts[number]), np.full(len(number), i), number, sizes))
            begin += len(rows)
        ends, of, number, size = (np.concatenate(columns) for columns in zip(*tables, strict=True))
        return cls(ends=ends, cache=of, number=number, size=size)

    def __len__(self) -> int:
        return len(self.ends)

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """The shard of each of these rows of the data set."""
        return np.searchsorted(self.ends, rows, side="right")

    def window(self, width: int | None) -> Window | None:
        """A shuffle window of this many shards; None for all."""
        return None if width is None else Window(width=width, ends=self.ends)
