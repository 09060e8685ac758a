"""FetchingSampler: an order of micro-batches whose shards are on this machine when their turn comes.

Only the main process of a rank fetches, and loader workers open files that are already here: a client of an object
store hangs in a forked process. Each rank holds the shards of the micro-batches that its workers may be reading. The
first process of a node also fetches ahead for all its ranks, in a thread, and holds what is in use or ahead.
"""

import resource
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import finalize

import numpy as np
from torch.utils.data import Sampler

from shards.errors import OptionError
from shards.places.mirror import Mirror
from student.data.ahead import FetchAhead, Room
from student.data.order import BatchItem, GlobalBatchSampler
from student.data.responses import CachedResponses
from student.data.uses import Uses, find_uses


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The ranks on this machine, and whether this process is the first of them."""

    ranks: range
    is_first: bool


class Holds:
    """Which shards of a data set are needed on this machine, counted, over its mirrors. Folders here are not touched.

    sizes   (shards,): bytes of each shard in a mirror, 0 for others
    """

    def __init__(self, data: CachedResponses) -> None:
        table, mirrors = data.shards, mirrors_of(data)
        self.sizes = np.where([mirror is not None for mirror in mirrors], 1, 0)[table.cache] * table.size
        self._files = [
            (mirrors[cache], data.caches[cache].plan.shards[number].file)
            for cache, number in zip(table.cache.tolist(), table.number.tolist(), strict=True)
        ]
        self._counts: Counter[int] = Counter()
        self._lock = threading.Lock()

    def take(self, shard: int) -> None:
        """Hold a shard, once more. Raises what its mirror raises."""
        mirror, file = self._files[shard]
        if mirror is not None:
            with self._lock:  # before it is here: the other thread then does not let it go
                self._counts[shard] += 1
            mirror.hold(file)

    def drop(self, shard: int) -> None:
        """Undo one `take`."""
        mirror, file = self._files[shard]
        if mirror is not None:
            with self._lock:
                self._counts[shard] -= 1
                if not self._counts[shard]:
                    del self._counts[shard]
                    mirror.release(file)

    def drop_all(self, batches: deque[list[int]], keep: int = 0) -> None:
        """Drop the shards of all micro-batches but the last `keep`."""
        while len(batches) > keep:
            for shard in batches.popleft():
                self.drop(shard)


class FetchingSampler(Sampler[list[BatchItem]]):
    """The micro-batches of a GlobalBatchSampler. Each is given out when its shards are on this machine, and held.

    in_flight   micro-batches that the loader may have handed to its workers and not got back, with the one asked for
    limit       the most bytes of shards on this machine; None for no bound
    """

    def __init__(
        self, sampler: GlobalBatchSampler, data: CachedResponses, node: Node, *, in_flight: int, limit: int | None
    ) -> None:
        self.batch_sampler = sampler  # by this name transformers' Trainer finds it to set the epoch
        self.in_flight = in_flight
        self.limit = limit
        self._data, self._node = data, node
        self._holds = Holds(data)
        self._given: deque[list[int]] = deque()
        finalize(self, self._holds.drop_all, self._given)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)

    @property
    def apart(self) -> int:
        """Steps that another rank may be ahead or behind: they wait for each other at the end of every global batch."""
        return self.batch_sampler.accumulation_steps if len(self._node.ranks) > 1 else 0

    @property
    def lag(self) -> int:
        """Steps after its last use that a shard may still be read on this machine."""
        return self.in_flight - 1 + self.apart

    def uses(self) -> Uses:
        """The uses of the epoch's shards by the ranks of this machine."""
        return find_uses(self.batch_sampler, self._data.shards, self._node.ranks)

    def bytes_at_once(self) -> int:
        """The most bytes of shards in mirrors that the epoch needs at the same time on this machine."""
        return self.uses().most_at_once(self._holds.sizes, self.lag + self.apart)

    def __iter__(self) -> Iterator[list[BatchItem]]:
        holds, given = self._holds, self._given
        holds.drop_all(given)  # of the epoch before, which the workers have read by now
        exhausted = False
        with self._ahead() as reach:
            try:
                for step, items in enumerate(self.batch_sampler):
                    if items:  # others are skipped
                        holds.drop_all(given, keep=self.in_flight - 1)
                        reach(step)
                        given.append([])
                        for shard in np.unique(self._data.shards.of_rows(np.array([item.row for item in items]))):
                            holds.take(int(shard))
                            given[-1].append(int(shard))
                    yield items
                exhausted = True
            finally:
                if not exhausted:
                    holds.drop_all(given)

    @contextmanager
    def _ahead(self) -> Iterator[Callable[[int], object]]:
        """What to call at every step; fetches ahead in the meantime, in the first process of a machine."""
        if not self._node.is_first:
            yield lambda step: None
            return
        sizes, holds = self._holds.sizes, self._holds
        uses = self.uses().only(sizes > 0)
        room = Room(bytes=self.limit, files=sys.maxsize if self.limit is None else file_room())
        if (files := uses.most_at_once(np.ones_like(sizes), self.lag)) > room.files:
            raise OptionError(
                f"shuffle_window: expected at most {room.files:,} shards at once (ulimit -n), got {files:,}"
            )
        ahead = FetchAhead(holds.take, holds.drop, uses, sizes, lag=self.lag, room=room)
        ahead.start()
        try:
            yield ahead.reach
        finally:
            ahead.stop()


def mirrors_of(data: CachedResponses) -> list[Mirror | None]:
    """For each cache of a data set: its mirror, None if it is a folder of this machine."""
    return [cache.mirror for cache in data.caches]


def file_room() -> int:
    """How many files may be held open; the limit of the process is raised to what the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard // 2
