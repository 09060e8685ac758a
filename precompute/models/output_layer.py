"""OutputLayer: float32 products of hidden states and an output layer, as exact as float32 weights would give.

The product of two half-precision numbers is exact in float32. So half-precision inputs lose nothing if the sums and
the result are float32: on a GPU they are multiplied as they are, on its tensor cores. A CPU has no such product; a
float32 copy of the weights gives the same there.

Dimensions: N positions, W width of the output layer, H hidden size.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch

from shards.cli.device import why_refused


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputLayer:
    """An output layer whose products are float32.

    module    the model's own, or a copy of it
    halves    whether its half-precision weight is multiplied as it is
    why       in words, which of the two and why
    """

    module: Any
    halves: bool
    why: str

    @classmethod
    def of(cls, module: Any, hidden_dtype: torch.dtype, device: torch.device, *, own: bool) -> "OutputLayer":
        """For a model's output module, on `device`. own: make a copy, so that the model can be moved away."""
        dtype = module.weight.dtype
        if dtype == torch.float32:
            return cls(module=copy.deepcopy(module).to(device) if own else module, halves=False, why="float32 weights")
        reason = why_copied(module, hidden_dtype, device)
        if reason is None:
            moved = copy.deepcopy(module).to(device) if own else module
            return cls(module=moved, halves=True, why=f"{_name(dtype)} weights as they are, summed in float32")
        wide = copy.deepcopy(module).float().to(device)
        return cls(module=wide, halves=False, why=f"float32 copy of {_name(dtype)} weights: {reason}")

    @property
    def device(self) -> torch.device:
        return self.module.weight.device

    def __call__(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """The products, (N, W) float32, on the layer's device."""
        if not self.halves:
            return self.module(hidden_NH.to(self.device, torch.float32))
        weight_WH = self.module.weight
        product_NW = torch.mm(hidden_NH.to(self.device), weight_WH.t(), out_dtype=torch.float32)
        return product_NW if self.module.bias is None else product_NW.add_(self.module.bias)


def why_copied(module: Any, hidden_dtype: torch.dtype, device: torch.device) -> str | None:
    """Why a half-precision output layer needs a float32 copy; None if it is multiplied as it is."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if type(module) is not torch.nn.Linear or type(module.weight) not in (torch.Tensor, torch.nn.Parameter):
        return f"it is a {type(module).__name__}, not a plain Linear"
    if any(getattr(module, name) for name in hooks) or "forward" in vars(module):
        return "it has hooks or a forward of its own"
    if hidden_dtype != module.weight.dtype:
        return f"hidden states are {_name(hidden_dtype)}"
    return why_no_product(device, hidden_dtype)


def why_no_product(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why torch cannot multiply halves into float32 on this device, found by trying; None if it can.

    It can since torch 2.8, on CUDA GPUs; builds for other GPUs refuse.
    """
    if device.type == "cpu":
        return "a CPU has no product of halves"
    small = torch.ones(16, 16, dtype=dtype, device=device)
    if why_refused(torch, lambda: torch.mm(small, small, out_dtype=torch.float32)) is None:
        return None
    return f"torch {torch.__version__.partition('+')[0]} has no product of halves on {device.type}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
