"""The loss as an autograd function around `shards.teacher.divergence`; targets as tensors, logged metrics.

Dimensions: C positions of a chunk, V vocabulary, M kept tokens over the chunk's positions, N positions of a batch.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from shards import Divergence
from shards.cli.device import Kernels
from shards.teacher.compose import LOW_STRENGTH
from shards.teacher.divergence import Buckets, segment_sum

REVERSE_KL = Divergence(name="reverse_kl")

METRICS = (
    "kl_teacher",
    "kl_reference",
    "kl_dpo",
    "expected_reward",
    "dpo_expected_reward",
    "strength",
    "support_mass",
    "tail_bound",
    "reference_support_mass",
)
"""The columns of `position_metrics`, in this order."""

WEAK_SUMS = ("low_strength_loss", "low_strength_gradient", "gradient")
"""Sums over positions, weighted as in the loss: of the divergences at strengths under LOW_STRENGTH; of the L1 norms of
the gradients over the logits, at these strengths and at all."""

_PER_ENTRY = ("support_ids", "teacher_logprobs", "reference_logprobs", "dpo_logprobs", "reward")
_PER_POSITION = (
    *("support_count", "teacher_tail", "reference_tail", "dpo_tail"),
    *("dpo_reward", "strength", "tail_bound", "coefficient", "counts"),
)


class SparseTargets:
    """The targets for the student's positions; the tensors of `student.data.collate.Collator`, under the same names.

    Not a dataclass, mapping or tuple on purpose: FSDP and DeepSpeed cast floating-point tensors in such containers to
    bf16 on the way into a model, and targets must stay float32.
    """

    support_count: torch.Tensor
    support_ids: torch.Tensor
    teacher_logprobs: torch.Tensor
    teacher_tail: torch.Tensor
    reference_logprobs: torch.Tensor
    reference_tail: torch.Tensor
    dpo_logprobs: torch.Tensor
    dpo_tail: torch.Tensor
    reward: torch.Tensor
    dpo_reward: torch.Tensor
    strength: torch.Tensor
    tail_bound: torch.Tensor
    coefficient: torch.Tensor
    counts: torch.Tensor

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name in (*_PER_ENTRY, *_PER_POSITION):
            setattr(self, name, tensors[name])
        self.support_ids = self.support_ids.long()  # torch indexes with int64
        self._ends = tensors.get("support_ends")

    @property
    def buckets(self) -> Buckets:
        """The teacher's log masses of each position's kept tokens and tail."""
        return Buckets(self.support_count, self.support_ids, self.teacher_logprobs, self.teacher_tail)

    def chunks(self, size: int) -> Iterator[tuple[slice, "SparseTargets"]]:
        """Consecutive chunks of `size` positions, each with its slice of positions.

        Nobody waits for the device if the collator's `support_ends` have stayed on the host.
        """
        ends = [0, *(self.support_count.cumsum(0) if self._ends is None else self._ends).tolist()]
        total = len(ends) - 1
        for start in range(0, total, size):
            positions = slice(start, min(start + size, total))
            entries = slice(ends[positions.start], ends[positions.stop])
            parts = {name: getattr(self, name)[entries] for name in _PER_ENTRY}
            yield positions, SparseTargets(parts | {name: getattr(self, name)[positions] for name in _PER_POSITION})


def gradient_by_(
    kernels: Kernels, divergence: Divergence, logits_CV: torch.Tensor, buckets: Buckets, factor_C: Any = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`Divergence.with_gradient_` by torch or by the Triton kernel, which takes float32 logits only."""
    if kernels == "torch":
        return divergence.with_gradient_(logits_CV, buckets, torch, factor_C)
    from student.loss.kernels import with_gradient_  # Triton is not everywhere

    return with_gradient_(divergence, logits_CV, buckets, factor_C)


def sparse_divergence(
    logits_CV: torch.Tensor, targets: SparseTargets, divergence: Divergence, kernels: Kernels = "torch"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(divergence (C,), student's log-probs of the kept tokens (M,), its tail log-prob (C,)), in nats.

    The divergence is over the buckets: every kept token, and the tail. Only it has a gradient, the analytic one of
    `shards.teacher.divergence`; no teacher vector of size V is built.
    """
    return _SparseDivergence.apply(logits_CV, targets, divergence, kernels)


class _SparseDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_CV: torch.Tensor, targets: SparseTargets, divergence: Divergence, kernels: Kernels
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        grad_CV = logits_CV.clone(memory_format=torch.contiguous_format)
        value_C, student_M, student_tail_C = gradient_by_(kernels, divergence, grad_CV, targets.buckets)
        ctx.save_for_backward(grad_CV)
        ctx.mark_non_differentiable(student_M, student_tail_C)
        return value_C, student_M, student_tail_C

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad_CV,) = ctx.saved_tensors
        return grad_CV * grads[0][:, None], None, None, None


def loss_sums(
    value_C: torch.Tensor,
    student_M: torch.Tensor,
    student_tail_C: torch.Tensor,
    targets: SparseTargets,
    divergence: Divergence,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sums over positions: (coefficient * divergence, the WEAK_SUMS, the METRICS). Only the first has a gradient.

    The WEAK_SUMS, (len(WEAK_SUMS),), and the metrics, (len(METRICS),), are over the positions that count.
    """
    loss_C = value_C * targets.coefficient
    with torch.no_grad():
        measured_CX = position_metrics(student_M, student_tail_C, targets)
        # float64: a run's sums are over millions of positions
        sums_X = (measured_CX * targets.counts[:, None]).double().sum(0)
        size_C = divergence.gradient_size(student_M, student_tail_C, targets.buckets, torch) * targets.coefficient
        weak_C = targets.strength < LOW_STRENGTH
        weak_3 = torch.stack([(loss_C * weak_C).sum(), (size_C * weak_C).sum(), size_C.sum()]).double()
    return loss_C.sum(), weak_3, sums_X


def position_metrics(student_M: torch.Tensor, student_tail_C: torch.Tensor, targets: SparseTargets) -> torch.Tensor:
    """The METRICS at every position, (C, len(METRICS)); KLs and rewards in nats, without gradient."""
    count_C = targets.support_count
    mass_M = student_M.exp()

    def kl(other_M: torch.Tensor, other_tail_C: torch.Tensor) -> torch.Tensor:
        kept_M, _ = REVERSE_KL.terms(student_M, other_M.to(student_M.dtype), torch)
        tail_C, _ = REVERSE_KL.terms(student_tail_C, other_tail_C.to(student_M.dtype), torch)
        return segment_sum(kept_M, count_C, torch) + tail_C

    columns = (
        kl(targets.teacher_logprobs, targets.teacher_tail),
        kl(targets.reference_logprobs, targets.reference_tail),
        kl(targets.dpo_logprobs, targets.dpo_tail),
        segment_sum(mass_M * targets.reward, count_C, torch),
        targets.dpo_reward,
        targets.strength,
        segment_sum(mass_M, count_C, torch),
        targets.tail_bound,
        -torch.expm1(targets.reference_tail.to(student_M.dtype)),
    )
    return torch.stack([column.to(student_M.dtype) for column in columns], dim=-1)
