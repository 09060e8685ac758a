"""Sparse divergences with a tail bucket, between a student's logits and cached targets. Pure.

Dimensions: C positions of a chunk, V vocabulary, M kept tokens over the chunk's positions, N positions of a batch.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from shards import Divergence

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
"""What `position_metrics` gives for every position, in this order."""

_PER_ENTRY = ("support_ids", "teacher_logprobs", "reference_logprobs", "dpo_logprobs", "reward")
_PER_POSITION = (
    *("support_count", "teacher_tail", "reference_tail", "dpo_tail"),
    *("dpo_reward", "strength", "tail_bound", "coefficient", "counts"),
)


class SparseTargets:
    """What the student's positions are compared with; the tensors of `student.data.Collator`, under its names.

    Not a dataclass, mapping or tuple on purpose: FSDP and DeepSpeed cast the floating-point tensors that they find in
    such containers to bf16 on the way into a model, and targets must stay float32.
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
        self.support_ids = self.support_ids.long()  # what torch indexes with

    def chunks(self, size: int) -> Iterator[tuple[slice, "SparseTargets"]]:
        """Consecutive chunks of `size` positions, each with its slice of positions."""
        ends = [0, *self.support_count.cumsum(0).tolist()]
        total = len(ends) - 1
        for start in range(0, total, size):
            positions = slice(start, min(start + size, total))
            entries = slice(ends[positions.start], ends[positions.stop])
            parts = {name: getattr(self, name)[entries] for name in _PER_ENTRY}
            yield positions, SparseTargets(parts | {name: getattr(self, name)[positions] for name in _PER_POSITION})


def sparse_divergence(
    logits_CV: torch.Tensor, targets: SparseTargets, divergence: Divergence
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(divergence (C,), student's log-probs of the kept tokens (M,), its tail log-prob (C,)), in nats.

    The divergence is over the buckets: every kept token, and the tail. Only it carries a gradient, the analytic one of
    `shards.divergence`; no V-sized teacher vector is built.
    """
    return _SparseDivergence.apply(
        logits_CV,
        targets.support_ids,
        targets.support_count,
        targets.teacher_logprobs.to(logits_CV.dtype),
        targets.teacher_tail.to(logits_CV.dtype),
        divergence,
    )


class _SparseDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_CV: torch.Tensor,
        ids_M: torch.Tensor,
        count_C: torch.Tensor,
        teacher_M: torch.Tensor,
        teacher_tail_C: torch.Tensor,
        divergence: Divergence,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        position_M = torch.arange(len(count_C), device=count_C.device).repeat_interleave(
            count_C, output_size=len(ids_M)
        )
        log_partition_C = logits_CV.logsumexp(-1)
        tail_partition_C = logits_CV.index_put((position_M, ids_M), logits_CV.new_tensor(-torch.inf)).logsumexp(-1)
        student_M = logits_CV[position_M, ids_M] - log_partition_C[position_M]
        student_tail_C = tail_partition_C - log_partition_C

        value_M, slope_M = divergence.terms(student_M, teacher_M, torch)
        value_tail_C, slope_tail_C = divergence.terms(student_tail_C, teacher_tail_C, torch)
        value_C = segment_sum(value_M, count_C) + value_tail_C
        slope_sum_C = segment_sum(slope_M, count_C) + slope_tail_C
        ctx.save_for_backward(
            logits_CV,
            ids_M,
            position_M,
            student_M,
            slope_M,
            tail_partition_C,
            student_tail_C,
            slope_tail_C,
            slope_sum_C,
        )
        ctx.mark_non_differentiable(student_M, student_tail_C)
        return value_C, student_M, student_tail_C

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """dL/dz_v = p(v) / P(b) * P(b) g(b) - p(v) * sum_b P(b) g(b), b the bucket of v."""
        (logits_CV, ids_M, position_M, student_M, slope_M, tail_partition_C, tail_C, slope_tail_C, slope_sum_C) = (
            ctx.saved_tensors
        )
        # a token of the tail: its share of the tail's mass, exp(z - tail partition), times the tail's slope
        pull_C = slope_tail_C - slope_sum_C * tail_C.exp()
        grad_CV = (logits_CV - tail_partition_C[:, None]).exp_().mul_(pull_C[:, None])
        grad_CV[position_M, ids_M] = slope_M - student_M.exp() * slope_sum_C[position_M]
        return grad_CV.mul_(grads[0][:, None]), None, None, None, None, None


def position_metrics(student_M: torch.Tensor, student_tail_C: torch.Tensor, targets: SparseTargets) -> torch.Tensor:
    """The numbers of METRICS at every position, (C, len(METRICS)); KLs and rewards in nats, without gradient."""
    count_C = targets.support_count
    mass_M = student_M.exp()

    def kl(other_M: torch.Tensor, other_tail_C: torch.Tensor) -> torch.Tensor:
        kept_M, _ = REVERSE_KL.terms(student_M, other_M.to(student_M.dtype), torch)
        tail_C, _ = REVERSE_KL.terms(student_tail_C, other_tail_C.to(student_M.dtype), torch)
        return segment_sum(kept_M, count_C) + tail_C

    columns = (
        kl(targets.teacher_logprobs, targets.teacher_tail),
        kl(targets.reference_logprobs, targets.reference_tail),
        kl(targets.dpo_logprobs, targets.dpo_tail),
        segment_sum(mass_M * targets.reward, count_C),
        targets.dpo_reward,
        targets.strength,
        segment_sum(mass_M, count_C),
        targets.tail_bound,
        -torch.expm1(targets.reference_tail.to(student_M.dtype)),
    )
    return torch.stack([column.to(student_M.dtype) for column in columns], dim=-1)


def segment_sum(values_M: torch.Tensor, count_C: torch.Tensor) -> torch.Tensor:
    """Sum of each position's entries, (C,); in a fixed order, so that it is the same every time."""
    return torch.segment_reduce(values_M, "sum", lengths=count_C, unsafe=True)
