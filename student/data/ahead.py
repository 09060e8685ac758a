"""FetchAhead: a thread that takes the shards of an epoch in the order of their first use, as far as there is room."""

import atexit
import heapq
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from student.data.uses import Uses

STOP_SECONDS = 5.0
"""How long to wait for a transfer that is under way when the thread is to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The most that may be taken at once: bytes (None: no bound), and files, because each of them is held open."""

    bytes: int | None
    files: int


class FetchAhead:
    """Takes each shard before its first use, and drops it `lag` steps after its last.

    take, drop   called with the number of a shard; `take` returns when it is on this machine, and may raise
    sizes        bytes of each shard
    room         must be enough for the shards in use at any step: `uses.most_at_once`
    """

    def __init__(
        self,
        take: Callable[[int], object],
        drop: Callable[[int], object],
        uses: Uses,
        sizes: np.ndarray,
        *,
        lag: int,
        room: Room,
    ) -> None:
        self._take, self._drop = take, drop
        self._uses, self._sizes, self._lag, self._room = uses, sizes, lag, room
        self._taken: list[tuple[int, int]] = []  # a heap of (step to drop it at, shard)
        self._bytes = 0  # of these, and of the one under way
        self._step = -1
        self._here = 0
        self._ended = False
        self._error: Exception | None = None
        self._changed = threading.Condition()
        # a daemon, because the interpreter waits for other threads before it calls `stop`
        self._thread = threading.Thread(target=self._run, name="fetch ahead", daemon=True)

    def start(self) -> None:
        atexit.register(self.stop)
        self._thread.start()

    def reach(self, step: int) -> None:
        """Drop what is not used from this step on, and wait until the step's shards are here.

        Raises what ended the thread.
        """
        needed = self._uses.begun(step)
        with self._changed:
            self._step = step
            self._drop_until(step)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._here >= needed or self._error is not None)
            if self._error is not None:
                raise self._error

    def stop(self) -> None:
        """End the thread and drop all shards. A transfer that takes long is not waited for; it drops its own shard."""
        atexit.unregister(self.stop)
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join(STOP_SECONDS)
        with self._changed:
            self._drop_until(None)

    def _run(self) -> None:
        try:
            for shard, last in zip(self._uses.shard.tolist(), self._uses.last.tolist(), strict=True):
                if not self._wait_for_room(int(self._sizes[shard])):
                    return
                self._take(shard)
                self._add(shard, last)
        except Exception as exc:  # of any kind: the order must not wait for ever
            with self._changed:
                self._error = exc
                self._changed.notify_all()

    def _wait_for_room(self, size: int) -> bool:
        """Wait for room, and use it; false if there is nothing more to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._fits(size))
            self._bytes += size
            return not self._ended

    def _fits(self, size: int) -> bool:
        room = self._room
        return len(self._taken) < room.files and (room.bytes is None or self._bytes + size <= room.bytes)

    def _add(self, shard: int, last: int) -> None:
        with self._changed:
            heapq.heappush(self._taken, (last + self._lag + 1, shard))
            self._here += 1
            self._drop_until(None if self._ended else self._step)
            self._changed.notify_all()

    def _drop_until(self, step: int | None) -> None:
        """Drop what is not used from `step` on; None: all."""
        while self._taken and (step is None or self._taken[0][0] <= step):
            _, shard = heapq.heappop(self._taken)
            self._bytes -= int(self._sizes[shard])
            self._drop(shard)
