"""The output layer's matrix products with half-precision inputs, summed and returned in float32. Pure.

A product of two half-precision numbers is exact in float32, so logits lose nothing but what their inputs were rounded
by. The gradient over the logits is rounded too. Each position is multiplied by a power of two first, so that its
largest entry is at the top of float16's range: lambda_t p / count is often below its bottom. A GPU runs these products
on its tensor cores; elsewhere they are computed in float32 from the rounded inputs, which is the same up to the order
of the sums.

Dimensions: N response positions, C positions of a chunk, V vocabulary, W rows of the output layer (V or more), H hidden
size.
"""

import functools

import torch
from transformers.utils import logging

from shards.cli.device import why_refused

logger = logging.get_logger(__name__)

HALVES = (torch.float16, torch.bfloat16)
TOP = 15
"""Numbers below 2**15 are a factor of two inside float16's range."""

HEADROOM = 8
"""A gradient over the logits is below 2**8 times the largest coefficient: it is p (1 - p) times differences of nats."""

LARGEST_SHIFT = 100
"""Keeps a power of two finite in float32, whatever a position's largest gradient is."""


def half_of(hidden: torch.Tensor, weight: torch.Tensor, autocast: torch.dtype | None) -> torch.dtype | None:
    """The dtype that the output layer's inputs are multiplied in; None for float32 (or TF32, by `--tf32`).

    autocast: the dtype of the autocast around the student, None without one.

    Only a GPU has products of half-precision inputs with float32 sums. There, inputs that are half already are
    multiplied as they are. Under fp16 autocast float32 inputs are rounded to float16, which has TF32's 11 bits of
    mantissa; under bf16 autocast they are not rounded, since 8 bits would cost more than they save (docs/fidelity.md).
    """
    if hidden.device.type != "cuda":
        return None
    half = half_on_gpu(hidden, weight, autocast)
    return half if half is not None and has_products(hidden.device, half) else None


@functools.cache
def has_products(device: torch.device, half: torch.dtype) -> bool:
    """Whether torch multiplies halves into float32 there, found by trying, once; if it does not, a warning says so."""
    small, total = torch.ones(16, 16, dtype=half, device=device), torch.zeros(16, 16, device=device)

    def both() -> None:
        multiply(small, small, out=total)
        add_product_(total, small, small)

    reason = why_refused(torch, both)
    if reason is not None:
        logger.warning(
            f"the output layer is multiplied in float32: torch {torch.__version__} has no products of {half} with "
            f"float32 sums on {device} ({reason})"
        )
    return reason is None


def half_on_gpu(hidden: torch.Tensor, weight: torch.Tensor, autocast: torch.dtype | None) -> torch.dtype | None:
    """`half_of` on a GPU, for tensors on any device."""
    if hidden.dtype == weight.dtype and hidden.dtype in HALVES:
        return hidden.dtype
    return torch.float16 if autocast == torch.float16 else None


def multiply(left: torch.Tensor, right: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
    """The matrix product of two half-precision matrices, in `out`, float32."""
    if left.device.type == "cuda":
        return torch.mm(left, right, out_dtype=torch.float32, out=out)
    return torch.mm(left.float(), right.float(), out=out)


def add_product_(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add the matrix product of two half-precision matrices to `total`, float32."""
    if left.device.type == "cuda":
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(left.float(), right.float())


class FloatProducts:
    """The products in the dtype of the hidden states: float32, with TF32's rounding if torch is set so, or float64.

    weight_unit   what the sums of the gradient over the weight are to be multiplied by
    """

    def __init__(self, hidden_NH: torch.Tensor, weight_VH: torch.Tensor) -> None:
        self.hidden_NH, self.weight_VH = hidden_NH, weight_VH.to(hidden_NH.dtype)
        self.weight_unit: torch.Tensor | float = 1.0

    def logits(self, positions: slice, *, out: torch.Tensor) -> torch.Tensor:
        """The product of a chunk's hidden states with the weight, (C, V), in `out`."""
        return torch.mm(self.hidden_NH[positions], self.weight_VH.t(), out=out)

    def gradients_(
        self, grad_CV: torch.Tensor, positions: slice, *, hidden: torch.Tensor | None, weight: torch.Tensor | None
    ) -> None:
        """Write the gradient over a chunk's hidden states, (C, H), and add the one over the weight, (V, H).

        grad_CV: the gradient over the chunk's products; it may be overwritten.
        """
        if hidden is not None:
            torch.mm(grad_CV, self.weight_VH, out=hidden)
        if weight is not None:
            weight.addmm_(grad_CV.t(), self.hidden_NH[positions])


class HalfProducts(FloatProducts):
    """The products with inputs in float16 or bfloat16, and results in float32.

    Each position's gradient has its own power of two. Over the hidden states it is undone in the result. Over the
    weight it is undone on the hidden states, which have to stay within float16's range too. So the sums carry a factor,
    one for the whole call and known before it: it lifts the hidden states of the strongest positions to the top of the
    range.
    """

    def __init__(
        self, hidden_NH: torch.Tensor, weight_VH: torch.Tensor, coefficient_N: torch.Tensor, half: torch.dtype
    ) -> None:
        self.hidden_NH, self.weight_VH, self.half = hidden_NH.to(half), weight_VH.to(half), half
        self._log2_factor = torch.zeros((), device=hidden_NH.device)
        if half == torch.float16:
            strongest = _exponent(coefficient_N.abs().amax()) + HEADROOM
            self._log2_factor = TOP - _exponent(hidden_NH.abs().amax()) + TOP - strongest
        self.weight_unit = torch.exp2(-self._log2_factor)

    def logits(self, positions: slice, *, out: torch.Tensor) -> torch.Tensor:
        return multiply(self.hidden_NH[positions], self.weight_VH.t(), out=out)

    def gradients_(
        self, grad_CV: torch.Tensor, positions: slice, *, hidden: torch.Tensor | None, weight: torch.Tensor | None
    ) -> None:
        shift_C1 = torch.zeros(len(grad_CV), 1, device=grad_CV.device)
        if self.half == torch.float16:
            largest_C1 = torch.linalg.vector_norm(grad_CV, torch.inf, dim=-1, keepdim=True)
            # a position without a gradient takes part with hidden states of nearly 0, not with infinite ones
            shift_C1 = (TOP - _exponent(largest_C1)).where(largest_C1 > 0, LARGEST_SHIFT).clamp(max=LARGEST_SHIFT)
            grad_CV.mul_(torch.exp2(shift_C1))
        half_CV = grad_CV.to(self.half)
        if hidden is not None:
            multiply(half_CV, self.weight_VH, out=hidden).mul_(torch.exp2(-shift_C1))
        if weight is not None:
            hidden_CH = self.hidden_NH[positions].float() * torch.exp2(self._log2_factor - shift_C1)
            add_product_(weight, half_CV.t(), hidden_CH.to(self.half))


def products_of(
    hidden_NH: torch.Tensor, weight_VH: torch.Tensor, coefficient_N: torch.Tensor, half: torch.dtype | None
) -> FloatProducts:
    """The products of a call, with inputs of dtype `half` unless that is None."""
    if half is None:
        return FloatProducts(hidden_NH, weight_VH)
    return HalfProducts(hidden_NH, weight_VH, coefficient_N, half)


def _exponent(value: torch.Tensor) -> torch.Tensor:
    """The smallest integer e with |value| < 2**e, as float32; 0 for 0."""
    return torch.frexp(value.float()).exponent.float()
