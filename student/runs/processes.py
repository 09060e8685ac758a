"""Runs work on the first of several processes, for all of them."""

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from shards.cli.outside import naming_saves
from shards.errors import AlignDistilError, first_line
from shards.locks.lock import exclusive, holds

Found = TypeVar("Found")

LONGEST_WAIT = timedelta(days=30)
"""How long the others wait. They use a group of their own: the training's gives up after half an hour."""


def by_first_process(work: Callable[[], Found]) -> Found:
    """The result of `work`, computed by the first process and sent to the others; it must be picklable.

    An error reaches every process: an AlignDistilError unchanged, of any other error its line.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return work()
    group = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
    found, error = _attempt(work) if dist.get_rank() == 0 else (None, None)
    told = error if error is None or isinstance(error, AlignDistilError) else AlignDistilError(first_line(error))
    box: list[Any] = [found, told]
    dist.broadcast_object_list(box, src=0, group=group)
    dist.destroy_process_group(group)
    error = box[1] if error is None else error
    if error is not None:
        raise error
    return box[0]


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keep other commands out of a run's folder while this one works there; its first process has the lock for all.

    Raises CacheConflict, on every process, if another command is at work there.
    """
    with contextlib.ExitStack() as stack:

        def lock() -> None:
            if not holds(out):
                with naming_saves("output_dir"):
                    stack.enter_context(exclusive(out))

        by_first_process(lock)
        yield


def _attempt(work: Callable[[], Found]) -> tuple[Found | None, Exception | None]:
    try:
        return work(), None
    except Exception as exc:  # of any kind: the others must not wait forever
        return None, exc
