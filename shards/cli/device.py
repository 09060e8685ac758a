"""Finds the device of a command, and the kernels for it. The caller passes torch in: `shards` does not import it."""

import contextlib
import importlib.metadata
import os
from types import ModuleType
from typing import Any, Literal

from shards.errors import OptionError, first_line

Kernels = Literal["torch", "triton"]
"""What computes over the vocabulary: plain torch on any device, or Triton kernels on a GPU."""
AskedKernels = Literal["auto", "torch", "triton"]
OLDEST_TRITON = (3, 4)
"""Older ones do not compile the kernels: they take no tuples of tensors."""


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


def resolve_kernels(asked: AskedKernels, device_type: str) -> Kernels:
    """`auto` is triton on a CUDA device if Triton is installed, else torch. Raises OptionError where triton cannot run.

    Triton runs on a CPU in its interpreter only, which is for tests: with TRITON_INTERPRET=1.
    """
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return choose_kernels(asked, device_type, triton=triton_version(), interpreted=interpreted)


def choose_kernels(asked: AskedKernels, device_type: str, *, triton: str | None, interpreted: bool) -> Kernels:
    """`resolve_kernels` for the given version of Triton. Pure."""
    usable = triton is not None and tuple(map(int, triton.split(".")[:2])) >= OLDEST_TRITON
    if asked == "torch":
        return "torch"
    if asked == "auto":
        return "triton" if device_type == "cuda" and usable and not interpreted else "torch"
    if not usable:
        wanted = ".".join(map(str, OLDEST_TRITON))
        raise OptionError(f"kernels: expected triton {wanted} or later for --kernels triton, found {triton or 'none'}")
    if device_type != ("cpu" if interpreted else "cuda"):
        where = "the processor with TRITON_INTERPRET=1" if interpreted else "a CUDA device"
        raise OptionError(f"kernels: expected {where} for --kernels triton, got a device of type {device_type}")
    return "triton"


def triton_version() -> str | None:
    """The version of the Triton that is installed."""
    for name in ("triton", "pytorch-triton"):  # the second comes with nightly builds of torch
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None
