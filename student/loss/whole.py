"""Runs the loss inside the output layer's own call where a wrapper has its weight whole only there (FSDP2, ZeRO-3).

Both gather a module's weights before its forward and split them again after its backward, by hooks around the call.
"""

from collections.abc import Callable
from typing import Any

import torch


def is_split(module: Any) -> bool:
    """Whether a wrapper keeps only a part of the module's weights on this rank outside of its call."""
    if torch.distributed.is_available():
        from torch.distributed.fsdp import FSDPModule

        if isinstance(module, FSDPModule):
            return True
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters(False))


def in_call_of(module: Any, work: Callable[..., Any], *inputs: Any) -> Any:
    """work(*inputs), as the forward of the module: one call, with the wrapper's hooks around it."""
    module.forward = work
    try:
        return module(*inputs)
    finally:
        del module.forward
