"""Sparse divergences with a tail bucket, between a student's logits and cached targets. Pure.

Dimensions: C positions of a chunk, V vocabulary, M kept tokens over the chunk's positions, N positions of a batch.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from shards import Divergence
from shards.compose import LOW_STRENGTH

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
    return _SparseDivergence.apply(logits_CV, targets, divergence)


class _SparseDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_CV: torch.Tensor, targets: SparseTargets, divergence: Divergence
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        grad_CV = logits_CV.clone(memory_format=torch.contiguous_format)
        value_C, student_M, student_tail_C = divergence_and_gradient_(grad_CV, targets, divergence)
        ctx.save_for_backward(grad_CV)
        ctx.mark_non_differentiable(student_M, student_tail_C)
        return value_C, student_M, student_tail_C

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad_CV,) = ctx.saved_tensors
        return grad_CV * grads[0][:, None], None, None


def divergence_and_gradient_(
    logits_CV: torch.Tensor, targets: SparseTargets, divergence: Divergence, *, factor_C: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `sparse_divergence` gives; `logits_CV` holds the gradient of factor * divergence over the logits afterwards.

    The exponential is taken once, in place, and only over the tail: the kept tokens are few and handled apart.
    factor_C   what the gradient of each position is multiplied by, not the values; None is 1
    """
    count_C = targets.support_count
    ids_M = targets.support_ids
    position_M = torch.arange(len(count_C), device=count_C.device).repeat_interleave(count_C, output_size=len(ids_M))
    kept_M = position_M * logits_CV.shape[1] + ids_M  # places in the flat logits
    flat = logits_CV.view(-1)
    logits_M = flat.index_select(0, kept_M)
    # not -inf: where everything is kept the largest logit of the tail is the lowest number, and differences stay finite
    lowest = torch.finfo(logits_CV.dtype).min
    flat.index_fill_(0, kept_M, lowest)
    largest_C = logits_CV.amax(-1)
    total_C = logits_CV.sub_(largest_C[:, None]).exp_().sum(-1)
    tail_partition_C = torch.where(largest_C == lowest, -torch.inf, largest_C + total_C.log())
    log_partition_C = torch.logaddexp(tail_partition_C, segment_logsumexp(logits_M, position_M, count_C))
    student_M = logits_M - log_partition_C[position_M]
    student_tail_C = tail_partition_C - log_partition_C

    value_M, slope_M = divergence.terms(student_M, targets.teacher_logprobs.to(student_M.dtype), torch)
    value_tail_C, slope_tail_C = divergence.terms(student_tail_C, targets.teacher_tail.to(student_M.dtype), torch)
    slope_sum_C = segment_sum(slope_M, count_C) + slope_tail_C
    # dL/dz_v = p(v) / P(b) * P(b) g(b) - p(v) * sum_b P(b) g(b), b the bucket of v; in the tail p(v) / P(b) is the
    # token's share of the total
    pull_C = slope_tail_C - slope_sum_C * student_tail_C.exp()
    pull_M = slope_M - student_M.exp() * slope_sum_C[position_M]
    if factor_C is not None:
        pull_C, pull_M = pull_C * factor_C, pull_M * factor_C[position_M]
    logits_CV.mul_((pull_C / total_C)[:, None])
    flat.index_copy_(0, kept_M, pull_M)
    return segment_sum(value_M, count_C) + value_tail_C, student_M, student_tail_C


def loss_sums(
    value_C: torch.Tensor, student_M: torch.Tensor, student_tail_C: torch.Tensor, targets: SparseTargets
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sums over positions: (coefficient * divergence, the part of it at strengths under LOW_STRENGTH, the METRICS).

    The metrics, (len(METRICS),), are over the positions that count. Only the first carries a gradient.
    """
    loss_C = value_C * targets.coefficient
    with torch.no_grad():
        measured_CX = position_metrics(student_M, student_tail_C, targets)
        # doubles: a run's sums are over millions of positions
        sums_X = (measured_CX * targets.counts[:, None]).double().sum(0)
        low = loss_C[targets.strength < LOW_STRENGTH].sum()
    return loss_C.sum(), low, sums_X


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


def segment_logsumexp(values_M: torch.Tensor, position_M: torch.Tensor, count_C: torch.Tensor) -> torch.Tensor:
    """Log of the sum of the exponentials of each position's entries, (C,); -inf without entries."""
    largest_C = torch.segment_reduce(values_M, "max", lengths=count_C, unsafe=True)
    return largest_C + segment_sum((values_M - largest_C[position_M]).exp(), count_C).log()
