"""The processes of a command: a single one, or those started by torchrun, one per local GPU.

If one of them refuses its input, all end, with one line from the first: none may wait for a process that has ended.
"""

import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from shards.cli.launcher import launched_processes, leave
from shards.cli.ranks import first_difference
from shards.errors import AlignDistilError, OptionError, first_line

LONGEST_WAIT = timedelta(days=30)
"""The first process waits for the slowest, and a build can take days."""
LONGEST_START = timedelta(minutes=5)
"""Limit for all processes to find each other."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """This process among `world_size`. Each shard number belongs to one process, so no two write the same shard.

    group: for sending objects and bytes; None means the default group of torch.distributed. said: puts the line of an
    error into the user's words.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    group: Any = None
    said: Callable[[str], str] = str

    @classmethod
    def join(cls) -> "Processes":
        """Read torchrun's environment variables, and join the other processes if there are any. Raises OptionError."""
        if launched_processes() == 1:
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
        """Whether this process does the task with this number."""
        return task % self.world_size == self.rank

    def wait(self) -> None:
        """Wait until all processes call this."""
        self.gather(None)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank. Raises AlignDistilError if one of them has ended."""
        found = [value] * self.world_size
        if self.world_size > 1:
            self._collective(lambda: dist.all_gather_object(found, value, group=self.group))
        return found

    def share(self, value: Any) -> Any:
        """The value of the first process, on all. Raises AlignDistilError if one of them has ended."""
        found = [value]
        if self.world_size > 1:
            self._collective(lambda: dist.broadcast_object_list(found, src=0, group=self.group))
        return found[0]

    def together(self, work: Callable[[], Result]) -> Result:
        """The result of `work` on this process; if any process raises AlignDistilError, all end, with its line."""
        if self.world_size == 1:
            return work()
        try:
            result, error = work(), None
        except AlignDistilError as exc:
            error = self.said(str(exc))
        self._end_together(self.gather(error))
        return result

    def first(self, work: Callable[[], Result]) -> Result:
        """The result of `work` on the first process, on all; if it raises AlignDistilError, all end, with its line."""
        found: Result = self.share(self.together(lambda: work() if self.is_first else None))
        return found

    def require_equal(self, identity: Mapping[str, Any]) -> None:
        """End all processes if one has read other inputs than the first, with one line that names it."""
        if self.world_size > 1:
            difference = first_difference(self.gather((platform.node(), identity)))
            self._end_together([difference])

    def leave(self) -> None:
        """Wait for the others, then leave their group."""
        leave(dist)

    def _end_together(self, errors: list[str | None]) -> None:
        failed = [(rank, error) for rank, error in enumerate(errors) if error is not None]
        if not failed:
            return
        if self.is_first:
            rank, error = failed[0]
            print(f"error: {error}{f' (rank {rank})' if rank else ''}", file=sys.stderr, flush=True)
        self.wait()  # until the first has printed it: a launcher ends the others as soon as one ends
        raise SystemExit(2)

    @staticmethod
    def _collective(work: Callable[[], object]) -> None:
        try:
            work()
        except RuntimeError as exc:  # the connection was closed
            raise AlignDistilError(f"expected the other processes, one has ended ({first_line(exc)})") from exc


def _start() -> None:
    """Find the other processes, within a few minutes."""
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=LONGEST_START))
        store.set_timeout(LONGEST_WAIT)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=LONGEST_WAIT)
    except (RuntimeError, ValueError) as exc:
        raise OptionError(
            f"WORLD_SIZE: expected {os.environ['WORLD_SIZE']} processes of a launcher such as torchrun, got "
            f"{first_line(exc)}; unset it to run one process"
        ) from exc
