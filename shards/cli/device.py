"""Finds the device of a command, and the kernels for it. The caller passes torch in: `shards` does not import it."""

import importlib.util
import os
from types import ModuleType
from typing import Any, Literal

from shards.errors import OptionError, first_line

Kernels = Literal["torch", "triton"]
"""What computes over the vocabulary: plain torch on any device, or Triton kernels on a GPU."""
AskedKernels = Literal["auto", "torch", "triton"]


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
    installed = importlib.util.find_spec("triton") is not None
    return choose_kernels(
        asked, device_type, installed=installed, interpreted=os.environ.get("TRITON_INTERPRET") == "1"
    )


def choose_kernels(asked: AskedKernels, device_type: str, *, installed: bool, interpreted: bool) -> Kernels:
    """`resolve_kernels` for the given circumstances. Pure."""
    if asked == "torch":
        return "torch"
    if asked == "auto":
        return "triton" if device_type == "cuda" and installed and not interpreted else "torch"
    if not installed:
        raise OptionError("kernels: expected triton to be installed for --kernels triton, found none")
    if device_type != ("cpu" if interpreted else "cuda"):
        where = "the processor with TRITON_INTERPRET=1" if interpreted else "a CUDA device"
        raise OptionError(f"kernels: expected {where} for --kernels triton, got a device of type {device_type}")
    return "triton"
