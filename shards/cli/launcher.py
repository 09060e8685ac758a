"""The processes of a launcher: how many there are, from its environment variables, and how to leave them."""

import os
from collections.abc import Mapping
from types import ModuleType

from shards.errors import OptionError

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun and accelerate launch set in every process."""


def launched_processes(environment: Mapping[str, str] = os.environ) -> int:
    """The number of processes of this run: 1 without a launcher.

    Raises OptionError if only some of a launcher's variables are set: torch would wait forever for the other
    processes.
    """
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        if not environment.get(name, "0").isdecimal():
            raise OptionError(f"{name}: expected a number in the environment, got {environment[name]!r}")
    count = int(environment.get("WORLD_SIZE", "1"))
    missing = [name for name in LAUNCHER if name not in environment]
    if missing and (count > 1 or "LOCAL_RANK" in environment):
        found = "WORLD_SIZE" if count > 1 else "LOCAL_RANK"
        raise OptionError(
            f"{found}={environment[found]} is in the environment: expected a launcher (torchrun, accelerate launch), "
            f"which sets {', '.join(missing)} too, got none; unset {found} for a run of one process"
        )
    return count


def leave(dist: ModuleType) -> None:
    """Wait for the other processes, then leave their group. dist: torch.distributed.

    If a process ends while a thread of its group still holds a tensor of the last gathering, the interpreter aborts
    it, even after good work. The barrier gives that thread time to release it.
    """
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
