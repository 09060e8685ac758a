"""The processes of a build: one, or those that torchrun started, one per local GPU."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

Found = TypeVar("Found")

LONGEST_WAIT = timedelta(days=30)
"""The first process waits for the slowest; a build may take days."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """This process among `world_size`. Shards are dealt out by number, so no two processes write the same one."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @classmethod
    def join(cls) -> "Processes":
        """What torchrun says in the environment; joins the other processes where there are any."""
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if world_size == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=LONGEST_WAIT)
        return cls(rank=dist.get_rank(), local_rank=int(os.environ["LOCAL_RANK"]), world_size=world_size)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def owns(self, task: int) -> bool:
        """Whether the task of this number is this process's."""
        return task % self.world_size == self.rank

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.world_size > 1:
            dist.barrier()

    def gather(self, found: Found) -> list[Found]:
        """What every process found, by rank: for the first process, which waits for all. Nothing for the others."""
        if self.world_size == 1:
            return [found]
        parts: list[Any] | None = [None] * self.world_size if self.is_first else None
        dist.gather_object(found, parts)
        return parts or []

    def leave(self) -> None:
        if self.world_size > 1:
            dist.destroy_process_group()
