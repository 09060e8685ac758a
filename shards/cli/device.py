"""Finds the device of a command. The caller passes torch in, because `shards` does not import it."""

from types import ModuleType
from typing import Any

from shards.errors import OptionError, first_line


def resolve_device(torch: ModuleType, name: str, local_rank: int = 0) -> Any:
    """`auto` is this process's GPU where there is one, else the processor. Raises OptionError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local_rank}"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as exc:  # a name that torch does not know, a device that is not here
        raise OptionError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r} ({first_line(exc)})") from exc
