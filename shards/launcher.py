"""How many processes a command has, as its launcher says in the environment."""

import os
from collections.abc import Mapping

from shards.errors import OptionError

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun and accelerate launch set for every process."""


def launched_processes(environment: Mapping[str, str] = os.environ) -> int:
    """The processes of this run: 1 without a launcher.

    Raises OptionError where the environment speaks of a launcher that is not there: torch would wait for processes
    that never come.
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
