"""What rounding depends on: device, dtype, attention, threads, versions of libraries."""

import importlib.metadata
from typing import Any

import torch

from shards.cli.device import Kernels, triton_version

LIBRARIES = ("aligndistil-offline", "torch", "transformers", "tokenizers", "jinja2", "numpy", "pyarrow")


def numerics(
    dtype: str,
    attn_implementation: str | None,
    device_map: str | None,
    device: torch.device,
    *,
    tf32: bool = False,
    torch_compile: bool = False,
    kernels: Kernels = "torch",
) -> dict[str, Any]:
    """What rounding depends on, apart from the models: equal numerics and inputs give equal values.

    dtype: as resolved, never auto. tf32, torch_compile and kernels are recorded only where they are not the default, so
    that other caches keep their identity.
    """
    found: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": attn_implementation,
        "device_map": device_map,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        # sums on a GPU do not depend on it
        "num_threads": torch.get_num_threads() if device.type == "cpu" else None,
        "versions": versions(),
    }
    found |= {name: True for name, on in (("tf32", tf32), ("torch_compile", torch_compile)) if on}
    # plain torch is not named, so that caches from before there were kernels keep their identity
    if kernels == "triton":
        found["kernels"] = f"triton {triton_version()}"
    return found


def versions() -> dict[str, str]:
    """The libraries that tokens and values depend on."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}
