"""The processes of a command: one, or those that torchrun started, one per local GPU.

What one of them refuses, all of them end for, with one line from the first: none may wait for a process that left.
"""

import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from shards.errors import AlignDistilError, OptionError, first_line
from shards.ranks import first_difference, world_size

LONGEST_WAIT = timedelta(days=30)
"""The first process waits for the slowest; a build may take days."""
LONGEST_START = timedelta(minutes=5)
"""Until all processes have found each other."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """This process among `world_size`. Shards are dealt out by number, so no two processes write the same one.

    group: what objects and bytes are sent over; None is the default group of torch.distributed.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    group: Any = None

    @classmethod
    def join(cls) -> "Processes":
        """What torchrun says in the environment; joins the other processes where there are any. Raises OptionError."""
        if world_size() == 1:
            return cls()
        if not dist.is_initialized():
            _start()
        group = None if dist.get_backend() == "gloo" else dist.new_group(timeout=LONGEST_WAIT, backend="gloo")
        return cls(
            rank=dist.get_rank(),
            local_rank=int(os.environ["LOCAL_RANK"]),
            world_size=dist.get_world_size(),
            group=group,
        )

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def owns(self, task: int) -> bool:
        """Whether the task of this number is this process's."""
        return task % self.world_size == self.rank

    def wait(self) -> None:
        """Wait until all processes have come here."""
        self.gather(None)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank. Raises AlignDistilError where one of them has ended."""
        found = [value] * self.world_size
        if self.world_size > 1:
            self._collective(lambda: dist.all_gather_object(found, value, group=self.group))
        return found

    def share(self, value: Any) -> Any:
        """The first process's value, on all. Raises AlignDistilError where one of them has ended."""
        found = [value]
        if self.world_size > 1:
            self._collective(lambda: dist.broadcast_object_list(found, src=0, group=self.group))
        return found[0]

    def together(self, work: Callable[[], Result]) -> Result:
        """The result of `work` on this process; where it raises AlignDistilError on any, all end, with its line."""
        if self.world_size == 1:
            return work()
        try:
            result, error = work(), None
        except AlignDistilError as exc:
            error = str(exc)
        self._end_together(self.gather(error))
        return result

    def require_equal(self, identity: Mapping[str, Any]) -> None:
        """End all processes where one has read other inputs than the first, with one line that names it."""
        if self.world_size > 1:
            difference = first_difference(self.gather((platform.node(), identity)))
            self._end_together([difference])

    def leave(self) -> None:
        if self.world_size > 1:
            dist.destroy_process_group()

    def _end_together(self, errors: list[str | None]) -> None:
        failed = [(rank, error) for rank, error in enumerate(errors) if error is not None]
        if not failed:
            return
        if self.is_first:
            rank, error = failed[0]
            print(f"error: {error}{f' (rank {rank})' if rank else ''}", file=sys.stderr, flush=True)
        self.wait()  # until the first has said it: a launcher ends the others as soon as one has left
        raise SystemExit(2)

    @staticmethod
    def _collective(work: Callable[[], object]) -> None:
        try:
            work()
        except RuntimeError as exc:  # a connection that was closed
            raise AlignDistilError(f"expected the other processes, one has ended ({first_line(exc)})") from exc


def _start() -> None:
    """Find the other processes, for some minutes at most."""
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=LONGEST_START))
        store.set_timeout(LONGEST_WAIT)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=LONGEST_WAIT)
    except (RuntimeError, ValueError) as exc:
        raise OptionError(
            f"WORLD_SIZE: expected {os.environ['WORLD_SIZE']} processes of a launcher such as torchrun, got "
            f"{first_line(exc)}; unset it to run one process"
        ) from exc
