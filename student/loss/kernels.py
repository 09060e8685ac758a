"""`Divergence.with_gradient_` as a Triton kernel: two reads of a chunk's logits and one write of the gradient.

A program works on one position. It takes the logits of the kept tokens out, as -inf, so that all that is left is the
tail, and needs no list of the kept tokens while it reads the vocabulary. It does so in tiles of (R, L): token r L + l
of a tile is in row r and lane l, and every lane has its own running maximum and sum
(docs/decisions/0012-vocabulary-kernels.md).

Dimensions: C positions, V vocabulary, M kept tokens over the positions, R rows and L lanes of a tile.
"""

import math
from collections.abc import Mapping

import torch
import triton
import triton.language as tl

from shards import Divergence
from shards.teacher.divergence import Buckets

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
TILE: Mapping[str, int] = {"R": 8, "L": 512, "num_warps": 16}
"""The shape of a tile, and the warps of a program."""


def with_gradient_(
    divergence: Divergence,
    logits_CV: torch.Tensor,
    buckets: Buckets,
    factor_C: torch.Tensor | None = None,
    *,
    gradient_CV: torch.Tensor | None = None,
    tile: Mapping[str, int] = TILE,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same as `Divergence.with_gradient_`, for float32 logits with contiguous rows. Does not wait for the device.

    gradient_CV   takes the gradient, in its own dtype, in the place of the logits, which are overwritten anyway
    """
    if logits_CV.dtype != torch.float32 or logits_CV.stride(1) != 1:
        raise TypeError(f"expected float32 logits with contiguous rows, got {logits_CV.dtype}, {logits_CV.stride()}")
    gradient_CV = logits_CV if gradient_CV is None else gradient_CV
    positions, size = logits_CV.shape
    value_C, tail_C = logits_CV.new_empty(2, positions)
    student_M = logits_CV.new_empty(len(buckets.ids))
    factor_C = logits_CV.new_ones(positions) if factor_C is None else factor_C
    with torch.cuda.device_of(logits_CV):  # Triton launches on the current device, which may be another one
        divergence_gradient[(positions,)](
            logits_CV,
            gradient_CV,
            buckets.count.cumsum(0, dtype=torch.long),
            buckets.count,
            buckets.ids,
            buckets.logprobs,
            buckets.tail,
            factor_C,
            value_C,
            student_M,
            tail_C,
            size,
            logits_CV.stride(0),
            gradient_CV.stride(0),
            NAME=divergence.name,
            WEIGHT=divergence.jsd_weight,
            LOG_WEIGHT=math.log(divergence.jsd_weight),
            LOG_REST=math.log(1 - divergence.jsd_weight),
            **tile,
            enable_fp_fusion=True,
        )
    return value_C, student_M, tail_C


@triton.jit
def exp(x):
    return tl.exp2(x * LOG2_E)


@triton.jit
def log(x):
    """-inf for 0; NaN stays."""
    return tl.where(x == 0.0, float("-inf"), tl.log2(tl.where(x == 0.0, 1.0, x)) * LN_2)


@triton.jit
def added(peak_L, sum_L, x_RL):
    """(maximum, sum of exponentials under it) with a tile added; (-inf, 0) is the empty set."""
    new_L = tl.maximum(peak_L, tl.max(x_RL, 0))
    shift_L = tl.where(new_L == float("-inf"), 0.0, new_L)
    return new_L, sum_L * exp(peak_L - shift_L) + tl.sum(exp(x_RL - shift_L[None, :]), 0)


@triton.jit
def over_lanes(peak_L, sum_L):
    """(maximum, sum of exponentials under it) over all lanes; the maximum of an empty set is 0."""
    peak = tl.max(peak_L, 0)
    shift = tl.where(peak == float("-inf"), 0.0, peak)
    return shift, tl.sum(sum_L * exp(peak_L - shift), 0)


@triton.jit
def terms(student, teacher, NAME: tl.constexpr, WEIGHT: tl.constexpr, LOG_WEIGHT: tl.constexpr, LOG_REST: tl.constexpr):
    """`Divergence.terms`: (contribution, P g) of buckets with these log masses."""
    empty = student == float("-inf")
    student = tl.where(empty, 0.0, student)
    lacking = teacher == float("-inf")
    if NAME == "reverse_kl":
        value = exp(student) * (student - teacher)
        slope = value
        unreached = tl.zeros_like(teacher)
    elif NAME == "forward_kl":
        slope = -exp(teacher)
        value = -slope * (tl.where(lacking, 0.0, teacher) - student)
        unreached = tl.where(lacking, 0.0, float("inf"))
    else:
        tl.static_assert(NAME == "jsd")
        weighted, own = teacher + LOG_WEIGHT, student + LOG_REST
        larger = tl.maximum(weighted, own)
        mixture = larger + log(exp(weighted - larger) + exp(own - larger))
        slope = (1 - WEIGHT) * exp(student) * (student - mixture)
        value = WEIGHT * exp(teacher) * (tl.where(lacking, mixture, teacher) - mixture) + slope
        unreached = -WEIGHT * LOG_WEIGHT * exp(teacher)
    return tl.where(empty, unreached, value), tl.where(empty, 0.0, slope)


@triton.jit
def take_out(logits, ids, student, count, L: tl.constexpr):
    """Move the logits of the kept tokens to `student`, leave -inf. Returns (maximum, sum of exponentials under it)."""
    peak_L, sum_L = tl.full((L,), float("-inf"), tl.float32), tl.zeros((L,), tl.float32)
    for start in range(0, count, L):
        at_L = start + tl.arange(0, L)
        id_L = tl.load(ids + at_L, mask=at_L < count, other=0)
        x_L = tl.load(logits + id_L, mask=at_L < count, other=float("-inf"))
        tl.store(student + at_L, x_L, mask=at_L < count)
        tl.store(logits + id_L, float("-inf"), mask=at_L < count)
        peak_L, sum_L = added(peak_L, sum_L, x_L[None, :])
    return over_lanes(peak_L, sum_L)


@triton.jit
def left_over(logits, V, R: tl.constexpr, L: tl.constexpr):
    """(maximum, sum of exponentials under it) of what is left of a position's logits."""
    tile_RL = tl.arange(0, R)[:, None] * L + tl.arange(0, L)[None, :]
    peak_L, sum_L = tl.full((L,), float("-inf"), tl.float32), tl.zeros((L,), tl.float32)
    for start in range(0, V, R * L):
        ids_RL = start + tile_RL
        x_RL = tl.load(logits + ids_RL, mask=ids_RL < V, other=float("-inf"))
        peak_L, sum_L = added(peak_L, sum_L, x_RL)
    return over_lanes(peak_L, sum_L)


@triton.jit(do_not_specialize=["V", "logits_stride", "gradient_stride"])
def divergence_gradient(
    logits, gradient, ends, counts, ids, teacher, teacher_tails, factors, values, student, student_tails,
    V, logits_stride, gradient_stride,
    NAME: tl.constexpr, WEIGHT: tl.constexpr, LOG_WEIGHT: tl.constexpr, LOG_REST: tl.constexpr,
    R: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(counts + row).to(tl.int32)
    first = tl.load(ends + row) - count
    logits += row * logits_stride
    gradient += row * gradient_stride
    ids += first
    teacher += first
    student += first

    kept_peak, kept_sum = take_out(logits, ids, student, count, L)
    tl.debug_barrier()  # other threads read what these wrote
    tail_peak, tail_sum = left_over(logits, V, R, L)
    kept_peak = tl.where(kept_sum == 0.0, tail_peak, kept_peak)
    tail_shift = tl.where(tail_sum == 0.0, kept_peak, tail_peak)
    peak = tl.maximum(kept_peak, tail_shift)
    log_sum = log(kept_sum * exp(kept_peak - peak) + tail_sum * exp(tail_shift - peak))
    student_tail = tail_shift - peak + log(tail_sum) - log_sum

    value_tail, slope_tail = terms(
        student_tail, tl.load(teacher_tails + row).to(tl.float32), NAME, WEIGHT, LOG_WEIGHT, LOG_REST
    )
    value_L, slope_L = tl.zeros((L,), tl.float32), tl.zeros((L,), tl.float32)
    for start in range(0, count, L):
        at_L = start + tl.arange(0, L)
        student_L = tl.load(student + at_L, mask=at_L < count, other=float("-inf")) - peak - log_sum
        teacher_L = tl.load(teacher + at_L, mask=at_L < count, other=0.0).to(tl.float32)
        one_L, other_L = terms(student_L, teacher_L, NAME, WEIGHT, LOG_WEIGHT, LOG_REST)
        value_L += tl.where(at_L < count, one_L, 0.0)
        slope_L += tl.where(at_L < count, other_L, 0.0)
    slope_sum = tl.sum(slope_L, 0) + slope_tail
    tl.store(values + row, tl.sum(value_L, 0) + value_tail)
    tl.store(student_tails + row, student_tail)

    factor = tl.load(factors + row).to(tl.float32)
    pull = (slope_tail - slope_sum * exp(student_tail)) * factor / tl.where(tail_sum == 0.0, 1.0, tail_sum)
    tile_RL = tl.arange(0, R)[:, None] * L + tl.arange(0, L)[None, :]
    for start in range(0, V, R * L):
        ids_RL = start + tile_RL
        x_RL = tl.load(logits + ids_RL, mask=ids_RL < V, other=float("-inf"))
        tl.store(gradient + ids_RL, exp(x_RL - tail_peak) * pull, mask=ids_RL < V)
    tl.debug_barrier()  # the kept tokens' zeros are written
    for start in range(0, count, L):
        at_L = start + tl.arange(0, L)
        id_L = tl.load(ids + at_L, mask=at_L < count, other=0)
        student_L = tl.load(student + at_L, mask=at_L < count, other=float("-inf")) - peak - log_sum
        teacher_L = tl.load(teacher + at_L, mask=at_L < count, other=0.0).to(tl.float32)
        _, other_L = terms(student_L, teacher_L, NAME, WEIGHT, LOG_WEIGHT, LOG_REST)
        tl.store(gradient + id_L, (other_L - exp(student_L) * slope_sum) * factor, mask=at_L < count)
        tl.store(student + at_L, student_L, mask=at_L < count)
