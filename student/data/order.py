"""The order of training: which rows each global batch holds, from the seed and the epoch alone."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class BatchItem(NamedTuple):
    """A row of the data set; `counts` is false for a row that only fills the last batch and has no weight."""

    row: int
    counts: bool


class GlobalBatchSampler(Sampler[list[BatchItem]]):
    """The order of training: micro-batches of one rank. Global batches depend only on (seed, epoch, global batch size).

    Rows are shuffled and cut into global batches. Inside a global batch they are sorted by length, longest first, and
    distributed so that micro-batches that run at the same time on different ranks are as similar, and as little padded,
    as possible. The last micro-batches are filled with items that do not count (the shortest row), so that every rank
    has the same number and no row counts twice.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        seed: int,
        micro_batch_size: int,
        accumulation_steps: int,
        world_size: int,
        rank: int,
        shuffle: bool = True,
    ) -> None:
        self.lengths = lengths
        self.seed = seed
        self.micro_batch_size = micro_batch_size
        self.accumulation_steps = accumulation_steps
        self.world_size = world_size
        self.rank = rank
        self.shuffle = shuffle
        self.epoch = 0

    @property
    def global_batch_size(self) -> int:
        return self.micro_batch_size * self.accumulation_steps * self.world_size

    @property
    def num_global_batches(self) -> int:
        return -(-len(self.lengths) // self.global_batch_size)

    def __len__(self) -> int:
        """Number of micro-batches of this rank in an epoch; the last step may have fewer than the others."""
        whole, rest = divmod(len(self.lengths), self.global_batch_size)
        return whole * self.accumulation_steps + -(-rest // (self.micro_batch_size * self.world_size))

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def global_batches(self) -> Iterator[list[BatchItem]]:
        """The global batches of the epoch, the same on every rank."""
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.lengths))
        else:
            order = np.argsort(-self.lengths, kind="stable")
        filler = BatchItem(int(np.argmin(self.lengths)), False)
        for start in range(0, len(order), self.global_batch_size):
            rows = order[start : start + self.global_batch_size]
            rows = rows[np.argsort(-self.lengths[rows], kind="stable")]
            items = [BatchItem(int(row), True) for row in rows]
            yield items + [filler] * (-len(items) % (self.micro_batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[BatchItem]]:
        at_once = self.micro_batch_size * self.world_size
        for items in self.global_batches():
            for start in range(0, len(items), at_once):
                yield items[start + self.rank : start + at_once : self.world_size]
