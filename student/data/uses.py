"""When an epoch needs which shards, and how many bytes of them at once. Pure.

Time is counted in steps: micro-batches of a rank; those of all ranks with the same number run at about the same time.
"""

from dataclasses import dataclass

import numpy as np

from student.data.order import GlobalBatchSampler
from student.data.table import ShardTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Uses:
    """The shards of an epoch in the order of their first use, (used,) each: number, first and last step."""

    shard: np.ndarray
    first: np.ndarray
    last: np.ndarray

    def begun(self, step: int) -> int:
        """How many of them are used up to this step."""
        return int(np.searchsorted(self.first, step, side="right"))

    def only(self, wanted: np.ndarray) -> "Uses":
        """The uses of some shards; wanted: true or false for each of the table."""
        some = wanted[self.shard]
        return Uses(shard=self.shard[some], first=self.first[some], last=self.last[some])

    def most_at_once(self, sizes: np.ndarray, lag: int) -> int:
        """The largest sum of `sizes` of the shards in use at a step; one stays in use for `lag` steps after its last.

        sizes: of each shard of the table, such as its bytes; with ones the shards are counted.
        """
        if not len(self.shard):
            return 0
        change = np.zeros(int(self.last.max()) + lag + 2, np.int64)
        np.add.at(change, self.first, sizes[self.shard])
        np.subtract.at(change, self.last + lag + 1, sizes[self.shard])
        return int(change.cumsum().max())


def find_uses(sampler: GlobalBatchSampler, table: ShardTable, ranks: range) -> Uses:
    """The uses of a table's shards by these ranks in the sampler's epoch, after the steps that it skips."""
    of_row = np.repeat(np.arange(len(table), dtype=np.int32), np.diff(table.ends, prepend=0))
    first = np.full(len(table), len(sampler))
    last = np.full(len(table), -1)
    begin = sampler.skips // sampler.accumulation_steps
    at = begin * sampler.global_batch_size
    for rows in sampler.blocks(begin):
        numbers = np.arange(at, at + len(rows))
        steps, rank = numbers // sampler.at_once, numbers % sampler.world_size
        taken = (steps >= sampler.skips) & (rank >= ranks.start) & (rank < ranks.stop)
        shards, steps = of_row[rows[taken]], steps[taken]
        last[shards] = steps  # of a shard's steps numpy keeps the one that comes last
        earliest = np.full(len(table), len(sampler))
        earliest[shards[::-1]] = steps[::-1]
        first = np.minimum(first, earliest)
        at += len(rows)
    (used,) = np.nonzero(last >= 0)
    order = used[np.argsort(first[used], kind="stable")]
    return Uses(shard=order, first=first[order], last=last[order])
