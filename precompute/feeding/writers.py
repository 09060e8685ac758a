"""Threads that write what was scored, with a bound on what waits for them, and errors seen at once."""

import os
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Generic, TypeVar

import torch

from precompute.feeding.stages import Stages

Result = TypeVar("Result")

MOST_WRITERS = 8
"""Each holds a shard in memory. One thread writes about 30,000 response tokens a second (docs/performance.md)."""


def writers_for(device: torch.device, processes: int) -> int:
    """Most threads that write: one beside a CPU that scores, half of a process's cores beside another device."""
    if device.type == "cpu":
        return 1
    cores = (os.cpu_count() or 1) // processes
    return min(MOST_WRITERS, max(1, cores // 2))


class Writers(Generic[Result]):
    """Runs tasks on threads. At most `most` are begun and not done; a thread starts only when all others are busy.

    take: called on the caller's thread with the result of each task, in the order in which they end.
    """

    def __init__(self, most: int, take: Callable[[Result], None], stages: Stages) -> None:
        self._most = most
        self._take = take
        self._stages = stages
        self._pool = ThreadPoolExecutor(max_workers=most, thread_name_prefix="writer")
        self._begun: set[Future[tuple[Result, float]]] = set()

    def __enter__(self) -> "Writers[Result]":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        """Wait for all tasks; after an error only for those that have begun."""
        with self._stages.waiting("writers"):
            self._pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            self.check()

    def submit(self, task: Callable[[], Result]) -> None:
        """Begin a task, once there is room. Raises the error of an earlier one."""
        self.check()
        with self._stages.waiting("writers"):
            while len(self._begun) >= self._most:
                wait(self._begun, return_when=FIRST_COMPLETED)
                self.check()
        self._begun.add(self._pool.submit(_timed, task))

    def check(self) -> None:
        """Take the results that are there. Raises the error of a task that failed."""
        for future in [future for future in self._begun if future.done()]:
            self._begun.remove(future)
            result, seconds = future.result()
            self._stages.wrote(seconds)
            self._take(result)


def _timed(task: Callable[[], Result]) -> tuple[Result, float]:
    start = time.perf_counter()
    return task(), time.perf_counter() - start
