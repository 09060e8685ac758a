"""ClusterOptions: the flags of a command that runs on a Ray cluster."""

from dataclasses import dataclass

from shards.cli.command import flag, require_at_least
from shards.cli.launcher import launched_processes
from shards.errors import OptionError

LOCAL = "local"
"""--ray local: a cluster of this machine that begins and ends with the command."""


@dataclass(kw_only=True)
class ClusterOptions:
    """Flags of a command that hands its work to Ray."""

    ray: str | None = flag(
        None, "work on a Ray cluster: auto (the one that this machine is part of), HOST:PORT, or local (started here)"
    )
    workers: int | None = flag(
        None, "with --ray: most workers; default: all GPUs of the cluster / gpus_per_worker, without GPUs one a machine"
    )
    gpus_per_worker: float | None = flag(None, "with --ray: GPUs of a worker; default: 1, or 0 in a cluster without")
    max_retries: int = flag(3, "with --ray: how often a shard is begun again after its worker was lost")

    def require_cluster_flags(self) -> None:
        """Raise OptionError for values out of range, and for flags that mean nothing without --ray."""
        require_at_least(self, 0, ["max_retries"])
        require_at_least(self, 1, ["workers"] if self.workers is not None else [])
        require_at_least(self, 0, ["gpus_per_worker"] if self.gpus_per_worker is not None else [])
        if self.ray is None:
            for name in ("workers", "gpus_per_worker"):
                if getattr(self, name) is not None:
                    raise OptionError(f"{name}: expected it with --ray only, got {getattr(self, name)}")
            return
        if self.ray.startswith("ray://"):
            raise OptionError(f"ray: expected auto, HOST:PORT or local on a machine of the cluster, got {self.ray!r}")
        if launched_processes() > 1:
            raise OptionError("ray: expected one process, which hands out the work, got those of a launcher")
