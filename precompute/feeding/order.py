"""Work ahead of time and results behind time: what lets the host and the device work side by side."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from precompute.threads import threads

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(work: Callable[[Item], Result], items: Iterable[Item], depth: int) -> Iterator[Result]:
    """The results of `work` in order, each begun on a thread while `depth` earlier ones are used; 0: no thread."""
    if depth == 0:
        yield from map(work, items)
        return
    with threads(1) as thread:
        begun: deque[Future[Result]] = deque()
        for item in items:
            begun.append(thread.submit(work, item))
            if len(begun) > depth:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


def one_behind(items: Iterable[Item]) -> Iterator[Item]:
    """The items in order, each after the next one was made."""
    earlier: deque[Item] = deque()
    for item in items:
        earlier.append(item)
        if len(earlier) == 2:
            yield earlier.popleft()
    yield from earlier
