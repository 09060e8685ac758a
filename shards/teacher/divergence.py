"""Divergences of student and teacher over kept tokens and the tail, and their gradient over the logits.

A bucket is a kept token, or the tail: everything outside the support as one additional symbol. P are a position's
bucket masses under the student, P* under the teacher. Every function is elementwise arithmetic on log masses, of any
shape, numpy or torch (`xp` is the module); the caller sums over the buckets of a position.

With g(b) = dD/dP(b), the gradient over the student's logits z is

    dD/dz_v = p(v) * (g(b(v)) - sum_b P(b) g(b)),         b(v): the bucket of token v,

and P(b) g(b) is what is returned here: it stays finite when P underflows. An empty bucket (-inf on both sides)
contributes 0 to both.

Dimensions: C positions, V vocabulary, M kept tokens over the positions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, NamedTuple

from shards.errors import OptionError

DivergenceName = Literal["reverse_kl", "forward_kl", "jsd"]


class Buckets(NamedTuple):
    """A teacher's log masses of the buckets of C positions, torch tensors.

    count (C,), ids (M,) int64   the kept tokens of each position
    logprobs (M,), tail (C,)     log p* of the kept tokens, and of the tail; -inf if nothing is outside
    """

    count: Any
    ids: Any
    logprobs: Any
    tail: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """The divergence's name, and the teacher's weight c in the mixture of the generalised JSD (0 < c < 1)."""

    name: DivergenceName = "reverse_kl"
    jsd_weight: float = 0.5

    def __post_init__(self) -> None:
        if self.name not in _TERMS:
            raise OptionError(f"divergence: expected one of {', '.join(_TERMS)}, got {self.name!r}")
        if not 0 < self.jsd_weight < 1:
            raise OptionError(f"jsd_weight: expected a number between 0 and 1, both excluded, got {self.jsd_weight}")

    def terms(self, student: Any, teacher: Any, xp: ModuleType) -> tuple[Any, Any]:
        """(contribution, P g) of each bucket.

        student, teacher   log masses of the same buckets, same shape, nats; -inf marks no mass
        The contribution sums over a position's buckets to the divergence in nats.
        """
        empty = xp.isneginf(student)
        value, slope = _TERMS[self.name](xp.where(empty, xp.zeros_like(student), student), teacher, self.jsd_weight, xp)
        # A bucket that the student cannot reach still adds the teacher's part of the JSD, c P* log(1 / c). It adds
        # nothing to the reverse KL, and makes the forward KL infinite, as it should be.
        unreached = _UNREACHED[self.name](teacher, self.jsd_weight, xp)
        return xp.where(empty, unreached, value), xp.where(empty, xp.zeros_like(slope), slope)

    def with_gradient_(
        self, logits_CV: Any, buckets: Buckets, torch: ModuleType, factor_C: Any = None
    ) -> tuple[Any, Any, Any]:
        """(divergence (C,), student's log-probs of the kept tokens (M,), its tail log-prob (C,)), in nats.

        `logits_CV` (contiguous) holds the gradient of factor * divergence over the logits afterwards. The exponential
        is computed once, in place, and for the tail only: the kept tokens are few and treated separately.
        factor_C   what the gradient of each position is multiplied by, not the values; None means 1
        """
        count_C = buckets.count
        ids_M = buckets.ids
        position_M = torch.arange(len(count_C), device=count_C.device).repeat_interleave(
            count_C, output_size=len(ids_M)
        )
        kept_M = position_M * logits_CV.shape[1] + ids_M  # indices into the flat logits
        flat = logits_CV.view(-1)
        logits_M = flat.index_select(0, kept_M)
        # finite on purpose: -inf would give NaN when the tail is empty
        lowest = torch.finfo(logits_CV.dtype).min
        flat.index_fill_(0, kept_M, lowest)
        largest_C = logits_CV.amax(-1)
        total_C = logits_CV.sub_(largest_C[:, None]).exp_().sum(-1)
        tail_partition_C = torch.where(largest_C == lowest, -torch.inf, largest_C + total_C.log())
        log_partition_C = torch.logaddexp(tail_partition_C, _segment_logsumexp(logits_M, position_M, count_C, torch))
        student_M = logits_M - log_partition_C[position_M]
        student_tail_C = tail_partition_C - log_partition_C

        value_M, slope_M = self.terms(student_M, buckets.logprobs.to(student_M.dtype), torch)
        value_tail_C, slope_tail_C = self.terms(student_tail_C, buckets.tail.to(student_M.dtype), torch)
        pull_M, pull_C = _pulls(slope_M, slope_tail_C, student_M, student_tail_C, position_M, count_C, torch)
        if factor_C is not None:
            pull_C, pull_M = pull_C * factor_C, pull_M * factor_C[position_M]
        logits_CV.mul_((pull_C / total_C)[:, None])
        flat.index_copy_(0, kept_M, pull_M)
        return segment_sum(value_M, count_C, torch) + value_tail_C, student_M, student_tail_C

    def gradient_size(self, student_M: Any, student_tail_C: Any, buckets: Buckets, torch: ModuleType) -> Any:
        """The L1 norm of a position's gradient over the logits, sum_v |dD/dz_v|, (C,), without a pass over them.

        student_M, student_tail_C   as `with_gradient_` returns them
        All tokens of the tail have gradients of one sign, which add up to the tail's pull.
        """
        count_C = buckets.count
        position_M = torch.arange(len(count_C), device=count_C.device).repeat_interleave(
            count_C, output_size=len(student_M)
        )
        _, slope_M = self.terms(student_M, buckets.logprobs.to(student_M.dtype), torch)
        _, slope_tail_C = self.terms(student_tail_C, buckets.tail.to(student_M.dtype), torch)
        pull_M, pull_C = _pulls(slope_M, slope_tail_C, student_M, student_tail_C, position_M, count_C, torch)
        return segment_sum(pull_M.abs(), count_C, torch) + pull_C.abs()


def segment_sum(values_M: Any, count_C: Any, torch: ModuleType) -> Any:
    """Sum of each position's entries, (C,); in a fixed order, so that it is always the same."""
    return torch.segment_reduce(values_M, "sum", lengths=count_C, unsafe=True)


def _pulls(
    slope_M: Any, slope_tail_C: Any, student_M: Any, student_tail_C: Any, position_M: Any, count_C: Any, torch: Any
) -> tuple[Any, Any]:
    """The gradient over the logits of the kept tokens, (M,), and the sum of that over the tail's, (C,).

    dL/dz_v = p(v) / P(b) * P(b) g(b) - p(v) * sum_b P(b) g(b), b the bucket of v. In the tail p(v) / P(b) is a token's
    share of the tail's mass, and its gradient is that share of the sum.
    """
    slope_sum_C = segment_sum(slope_M, count_C, torch) + slope_tail_C
    return slope_M - student_M.exp() * slope_sum_C[position_M], slope_tail_C - slope_sum_C * student_tail_C.exp()


def _segment_logsumexp(values_M: Any, position_M: Any, count_C: Any, torch: ModuleType) -> Any:
    """Log of the sum of exponentials of each position's entries, (C,); -inf without entries."""
    largest_C = torch.segment_reduce(values_M, "max", lengths=count_C, unsafe=True)
    return largest_C + segment_sum((values_M - largest_C[position_M]).exp(), count_C, torch).log()


def _reverse_kl(student: Any, teacher: Any, _: float, xp: ModuleType) -> tuple[Any, Any]:
    term = xp.exp(student) * (student - teacher)
    return term, term


def _forward_kl(student: Any, teacher: Any, _: float, xp: ModuleType) -> tuple[Any, Any]:
    mass = xp.exp(teacher)
    finite = xp.where(xp.isneginf(teacher), xp.zeros_like(teacher), teacher)
    return mass * (finite - student), -mass


def _jsd(student: Any, teacher: Any, weight: float, xp: ModuleType) -> tuple[Any, Any]:
    """Agarwal et al. 2024 (GKD), eq. 1: c KL(P* || M) + (1 - c) KL(P || M), M = c P* + (1 - c) P."""
    mixture = _mixture(student, teacher, weight, xp)
    slope = (1 - weight) * xp.exp(student) * (student - mixture)
    finite = xp.where(xp.isneginf(teacher), mixture, teacher)
    return weight * xp.exp(teacher) * (finite - mixture) + slope, slope


def _mixture(student: Any, teacher: Any, weight: float, xp: ModuleType) -> Any:
    return xp.logaddexp(teacher + math.log(weight), student + math.log(1 - weight))


def _unreached_reverse_kl(teacher: Any, _: float, xp: ModuleType) -> Any:
    return xp.zeros_like(teacher)


def _unreached_forward_kl(teacher: Any, _: float, xp: ModuleType) -> Any:
    return xp.where(xp.isneginf(teacher), xp.zeros_like(teacher), xp.zeros_like(teacher) + xp.inf)


def _unreached_jsd(teacher: Any, weight: float, xp: ModuleType) -> Any:
    return -weight * math.log(weight) * xp.exp(teacher)


_TERMS: dict[str, Callable[..., tuple[Any, Any]]] = {"reverse_kl": _reverse_kl, "forward_kl": _forward_kl, "jsd": _jsd}
_UNREACHED: dict[str, Callable[..., Any]] = {
    "reverse_kl": _unreached_reverse_kl,
    "forward_kl": _unreached_forward_kl,
    "jsd": _unreached_jsd,
}
