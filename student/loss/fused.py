"""Output layer and loss in one pass: the gradient is computed in the forward pass. Pure.

The gradient over a chunk's logits has a closed form (`shards.teacher`), and the weight of every position in the loss is
known. So a chunk takes three matrix products (logits, gradient over the hidden states, gradient over the weight), not
the four of a loss that computes its logits again. The incoming gradient is one number, and `backward` multiplies by it.

Dimensions: N response positions, C positions of a chunk, V vocabulary, W rows of the output layer (V or more),
H hidden size.
"""

from dataclasses import dataclass
from typing import Any

import torch

from shards import Divergence
from shards.cli.device import Kernels
from shards.modelfiles.head import LogitTransform
from student.loss.products import products_of
from student.loss.sparse import SparseTargets, gradient_by_, loss_sums

Sums = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""The result of `student.loss.sparse.loss_sums`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedLoss:
    """Loss sums of hidden states under a plain output layer; `why_not_fused` says what is plain.

    Logits exist for `chunk_positions` positions at a time. The gradients are kept for `backward`, in float32 or wider:
    one tensor of the size of the hidden states and one of the size of the weight.
    """

    vocabulary_size: int
    divergence: Divergence
    transform: LogitTransform
    chunk_positions: int
    kernels: Kernels = "torch"

    def __call__(
        self, hidden_NH: torch.Tensor, head: torch.nn.Linear, targets: SparseTargets, half: torch.dtype | None = None
    ) -> Sums:
        """half: the dtype that the inputs of the matrix products are rounded to; None: that of the hidden states."""
        return _FusedLoss.apply(hidden_NH, head.weight, head.bias, targets, self, half, torch.is_grad_enabled())

    def product_gradient_(self, product_CV: torch.Tensor, targets: SparseTargets) -> tuple[Sums, torch.Tensor]:
        """Sums of a chunk from the output layer's product, which is overwritten, and the gradient over that product."""
        if self.transform == LogitTransform():
            return self._logit_gradient_(product_CV, targets), product_CV
        with torch.enable_grad():
            product_CV = product_CV.detach().requires_grad_()
            logits_CV = self.transform(product_CV, torch)
        grad_CV = logits_CV.detach().clone()
        sums = self._logit_gradient_(grad_CV, targets)
        (grad_product_CV,) = torch.autograd.grad(logits_CV, product_CV, grad_CV)
        return sums, grad_product_CV

    def _logit_gradient_(self, logits_CV: torch.Tensor, targets: SparseTargets) -> Sums:
        factor_C = targets.coefficient.to(logits_CV.dtype)
        found = gradient_by_(self.kernels, self.divergence, logits_CV, targets.buckets, factor_C)
        return loss_sums(*found, targets, self.divergence)


def why_not_fused(head: Any) -> str | None:
    """Why the gradient of this output module cannot be computed in the forward pass; None if it can.

    It can for a plain `torch.nn.Linear`, with an ordinary tensor as weight, and nothing that runs around its forward.
    Everything else (LoRA on the output layer, a quantised one, hooks) is called as a module.
    """
    if type(head) is not torch.nn.Linear:
        return f"the output layer is a {type(head).__name__}, not a plain Linear"
    for tensor in (head.weight, head.bias):
        if tensor is not None and type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            return f"the output layer's parameters are of type {type(tensor).__name__}"
    hooks = (head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks)
    if any(hooks) or "forward" in vars(head):
        return "the output layer has hooks or a forward of its own"
    return None


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_WH: torch.Tensor,
        bias_W: torch.Tensor | None,
        targets: SparseTargets,
        loss: FusedLoss,
        half: torch.dtype | None,
        grad_enabled: bool,
    ) -> Sums:
        size = loss.vocabulary_size
        products = products_of(hidden_NH, weight_WH[:size], targets.coefficient, half)
        float_dtype = torch.promote_types(hidden_NH.dtype, torch.float32)
        wanted = [wants and grad_enabled for wants in ctx.needs_input_grad[:3]]
        shapes = (hidden_NH.shape, weight_WH.shape, weight_WH.shape[:1])
        grads = [
            hidden_NH.new_zeros(shape, dtype=float_dtype) if wants else None
            for wants, shape in zip(wanted, shapes, strict=True)
        ]
        grad_NH, grad_WH, grad_W = grads
        room_CV = hidden_NH.new_empty(min(loss.chunk_positions, len(hidden_NH)), size, dtype=float_dtype)
        parts = []
        for positions, part in targets.chunks(loss.chunk_positions):
            product_CV = products.logits(positions, out=room_CV[: positions.stop - positions.start])
            if bias_W is not None:
                product_CV += bias_W[:size]
            sums, grad_CV = loss.product_gradient_(product_CV, part)
            parts.append(sums)
            if grad_W is not None:
                grad_W[:size] += grad_CV.sum(0)
            hidden = None if grad_NH is None else grad_NH[positions]
            weight = None if grad_WH is None else grad_WH[:size]
            products.gradients_(grad_CV, positions, hidden=hidden, weight=weight)
        ctx.save_for_backward(*grads)
        ctx.weight_unit = products.weight_unit
        ctx.weight_dtype = weight_WH.dtype
        loss_sum, weak_3, metrics_X = (torch.stack(column).sum(0) for column in zip(*parts, strict=True))
        ctx.mark_non_differentiable(weak_3, metrics_X)
        return loss_sum, weak_3, metrics_X

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # in place, since the weight's gradient is large; autograd notices, and refuses a second backward
        factors = (grads[0], grads[0] * ctx.weight_unit, grads[0])
        grad_NH, grad_WH, grad_W = (
            None if saved is None else saved.mul_(factor)
            for saved, factor in zip(ctx.saved_tensors, factors, strict=True)
        )
        narrow = (None if grad is None else grad.to(ctx.weight_dtype) for grad in (grad_WH, grad_W))
        return grad_NH, *narrow, None, None, None, None
