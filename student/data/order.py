"""The order of training: which rows each global batch holds, from the seed, the epoch and the shuffle window alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

BLOCK = 1024
"""Global batches whose rows are sorted by length at a time."""


FILLS = -1
"""Stands for the row of a sequence that only fills a batch."""


class BatchItem(NamedTuple):
    """A row of the data set; `counts` is false for a row that only fills the last batch and has no weight."""

    row: int
    counts: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A bound on the shards that are read at the same time.

    width   shards among which a row is shuffled
    ends    (shards,): the end of each shard's rows in the data set, ascending
    """

    width: int
    ends: np.ndarray

    @property
    def whole(self) -> bool:
        """Whether it holds all shards, and so is no bound."""
        return self.width >= len(self.ends)


def shuffled(num_rows: int, *, seed: int, epoch: int, window: Window | None = None) -> np.ndarray:
    """The rows of an epoch in random order, (num_rows,): a permutation, or one whose rows stay near their shard.

    With a window of W shards the shards are shuffled first. A row's place is that of its shard's middle, moved by up
    to W / 2 shards; places beyond an end are reflected. So at any time only W shards, or W + 1, have been begun and
    not finished. docs/training.md says how far that is from a permutation.
    """
    generator = np.random.default_rng([seed, epoch])
    if window is None or window.whole:
        return generator.permutation(np.arange(num_rows, dtype=_row_type(num_rows)))
    shards, row_bits = len(window.ends), num_rows.bit_length()
    middle = generator.permutation(shards) + 0.5
    places = generator.random(num_rows)
    places -= 0.5
    places *= window.width
    places += np.repeat(middle, np.diff(window.ends, prepend=0))
    places = shards - np.abs(shards - np.abs(places))  # reflected at 0 and at `shards`
    places *= 2.0 ** (62 - row_bits) / shards
    # a key has the place above the row: no two are equal, so any sort gives this order, and the fastest can be used
    keys = places.astype(np.int64) << row_bits | np.arange(num_rows)
    keys.sort()
    return (keys & ((1 << row_bits) - 1)).astype(_row_type(num_rows))


def by_length(lengths: np.ndarray, window: Window | None = None) -> np.ndarray:
    """All rows, longest first; with a window inside each group of so many shards, group after group."""
    if window is None or window.whole:
        return np.argsort(-lengths, kind="stable")
    group = np.repeat(np.arange(len(window.ends)) // window.width, np.diff(window.ends, prepend=0))
    return np.lexsort((-lengths, group))


def _row_type(num_rows: int) -> type[np.signedinteger]:
    """The smaller type that numbers so many rows."""
    return np.int32 if num_rows < 2**31 else np.int64


class GlobalBatchSampler(Sampler[list[BatchItem]]):
    """The order of training: micro-batches of one rank. Global batches depend only on (seed, epoch, global batch size),
    and on the shuffle window if there is one.

    Rows are shuffled and cut into global batches. Inside a global batch they are sorted by length, longest first, and
    distributed so that micro-batches that run at the same time on different ranks are as similar, and as little padded,
    as possible. The last micro-batches are filled with items that do not count (a short row), so that every rank has
    the same number and no row counts twice.

    skips   micro-batches at the start of an epoch that the caller does not use: they are empty, and cost nothing
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
        window: Window | None = None,
    ) -> None:
        self.lengths = lengths
        self.seed = seed
        self.micro_batch_size = micro_batch_size
        self.accumulation_steps = accumulation_steps
        self.world_size = world_size
        self.rank = rank
        self.shuffle = shuffle
        self.window = window
        self.epoch = 0
        self.skips = 0

    @property
    def at_once(self) -> int:
        """Rows of the micro-batches that run at the same time, one on each rank."""
        return self.micro_batch_size * self.world_size

    @property
    def global_batch_size(self) -> int:
        return self.at_once * self.accumulation_steps

    @property
    def num_global_batches(self) -> int:
        return -(-len(self.lengths) // self.global_batch_size)

    def __len__(self) -> int:
        """Number of micro-batches of this rank in an epoch; the last step may have fewer than the others."""
        return -(-len(self.lengths) // self.at_once)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def blocks(self, first: int = 0) -> Iterator[np.ndarray]:
        """The epoch's rows from global batch `first` on, many at a time, sorted by length inside each global batch.

        The last rows fill the last micro-batches: those from `len(self.lengths)` on do not count.
        """
        order = self._order()
        size = self.global_batch_size
        whole = len(order) // size * size
        for start in range(first * size, whole, BLOCK * size):
            yield self._sorted(order[start : min(whole, start + BLOCK * size)].reshape(-1, size)).ravel()
        if len(order) > max(whole, first * size):
            (last,) = self._sorted(order[None, whole:])
            # in a window a row of another shard would be one more shard to read
            filler = last[-1] if self.window and not self.window.whole else np.argmin(self.lengths)
            yield np.append(last, np.full(-len(last) % self.at_once, filler, last.dtype))

    def global_batches(self) -> Iterator[list[BatchItem]]:
        """The global batches of the epoch, the same on every rank."""
        yield from self._items(self.global_batch_size, slice(None))

    def __iter__(self) -> Iterator[list[BatchItem]]:
        yield from ([] for _ in range(self.skips))
        yield from self._items(self.at_once, slice(self.rank, None, self.world_size), self.skips)

    def _items(self, size: int, mine: slice, skips: int = 0) -> Iterator[list[BatchItem]]:
        """Of every `size` rows after the first `skips` times as many: those of the slice."""
        counted, at = len(self.lengths), skips * size // self.global_batch_size * self.global_batch_size
        for rows in self.blocks(at // self.global_batch_size):
            for start in range(max(0, skips * size - at), len(rows), size):
                taken = rows[start : start + size][mine].tolist()
                numbers = range(at + start, at + start + size)[mine]
                yield list(map(BatchItem, taken, map(counted.__gt__, numbers)))
            at += len(rows)

    def _order(self) -> np.ndarray:
        if not self.shuffle:
            return by_length(self.lengths, self.window)
        return shuffled(len(self.lengths), seed=self.seed, epoch=self.epoch, window=self.window)

    def _sorted(self, rows: np.ndarray) -> np.ndarray:
        """Rows of global batches, (batches, rows of each), each longest first."""
        by_length = np.argsort(-self.lengths[rows], axis=1, kind="stable")
        return np.take_along_axis(rows, by_length, axis=1)
