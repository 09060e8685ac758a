"""How many workers a cluster has room for, and what each takes."""

from dataclasses import dataclass
from typing import Any

from precompute.cluster.options import ClusterOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """workers: as asked for, None for as many as there is room for; gpus: of a worker."""

    ray: Any
    workers: int | None
    gpus: float

    @classmethod
    def of(cls, ray: Any, options: ClusterOptions, device: str) -> "Sizes":
        """Workers have a GPU each if the cluster has any, unless the device is cpu or another number is asked for."""
        default = 1.0 if device != "cpu" and any(_gpus(machine) for machine in _machines(ray)) else 0.0
        gpus = default if options.gpus_per_worker is None else options.gpus_per_worker
        return cls(ray=ray, workers=options.workers, gpus=gpus)

    @property
    def room(self) -> int:
        """Workers that the cluster has GPUs for, in use or not; without GPUs one a machine, or as many as asked for."""
        machines = _machines(self.ray)
        if self.gpus:
            return sum(int(_gpus(machine) / self.gpus) for machine in machines)
        return len(machines) if self.workers is None else self.workers

    @property
    def wanted(self) -> int:
        return self.room if self.workers is None else self.workers

    @property
    def resources(self) -> dict[str, Any]:
        """What Ray sets aside for a worker. A worker without GPUs uses threads of its own number."""
        spread = {} if self.gpus else {"scheduling_strategy": "SPREAD"}
        return {"num_cpus": 1, "num_gpus": self.gpus, **spread}

    def __str__(self) -> str:
        if not self.gpus:
            return "without GPUs" + ("" if self.workers else ", one a machine")
        return f"with {self.gpus:g} GPU{'' if self.gpus == 1 else 's'} each"


def _machines(ray: Any) -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _gpus(machine: dict[str, Any]) -> float:
    return float(machine["Resources"].get("GPU", 0))
