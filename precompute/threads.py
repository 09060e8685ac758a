"""Threads of a generator, which may never be read to its end."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor


@contextlib.contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """An executor that nobody waits for at its end.

    A generator that is given up is closed by garbage collection, in whatever thread that runs: in one that is just
    being started, waiting for other threads would never end.
    """
    pool = ThreadPoolExecutor(max_workers=count)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
