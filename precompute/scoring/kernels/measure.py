"""The kernel that measures a position: the roles' partitions, D_t, and the teachers' partitions. Three reads.

Dimensions: C positions, V vocabulary, R rows and L lanes of a tile, S scored strengths of a pair.
"""

import triton
import triton.language as tl

from precompute.scoring.kernels.tiles import (
    LN_2,
    LOG2_E,
    added,
    load_bits,
    nothing,
    over_lanes,
    score_strengths,
    tile_ids,
)


@triton.jit
def row_norms(logits, strides, row, V, R: tl.constexpr, L: tl.constexpr):
    """Each role's (largest logit, log2 of the sum of exponentials under it).

    Where a logit is not finite, the first is infinite with the sign of the logit, or the second NaN.
    """
    tile_RL = tile_ids(R, L)
    state = ()
    for _ in tl.static_range(len(logits)):
        state = state + ((nothing(L), tl.full((L,), float("inf"), tl.float32)),)
    for start in range(0, V, R * L):
        ids_RL = start + tile_RL
        after = ()
        for r in tl.static_range(len(logits)):
            x_RL = tl.load(logits[r] + row * strides[r] + ids_RL, mask=ids_RL < V, other=float("-inf"))
            lowest_L = tl.minimum(state[r][1], tl.min(tl.where(ids_RL < V, x_RL, float("inf")), 0))
            after = after + ((added(state[r][0][0], state[r][0][1], x_RL, LOG2_E), lowest_L),)
        state = after
    norms = ()
    for r in tl.static_range(len(logits)):
        peak, log_sum = over_lanes(state[r][0][0], state[r][0][1], LOG2_E)
        lowest = tl.min(state[r][1], 0)
        norms = norms + ((tl.where(lowest == float("-inf"), lowest, peak), log_sum),)
    return norms


@triton.jit
def row_distances(
    logits, strides, row, V, norms, NEGATIVES: tl.constexpr, R: tl.constexpr, L: tl.constexpr
):  # fmt: skip
    """D_t for each negative."""
    tile_RL = tile_ids(R, L)
    sums = ()
    for _ in tl.static_range(len(NEGATIVES)):
        sums = sums + (tl.zeros((L,), tl.float32),)
    for start in range(0, V, R * L):
        ids_RL = start + tile_RL
        bits = load_bits(logits, strides, row, ids_RL, V, norms)
        dpo_RL = tl.exp2(bits[0])
        after = ()
        for n in tl.static_range(len(NEGATIVES)):
            apart_RL = tl.abs(tl.exp2(bits[NEGATIVES[n]]) - dpo_RL)
            after = after + (sums[n] + tl.sum(tl.where(ids_RL < V, apart_RL, 0.0), 0),)
        sums = after
    found = ()
    for n in tl.static_range(len(NEGATIVES)):
        found = found + (tl.sum(sums[n], 0),)
    return found


@triton.jit(do_not_specialize=["stride_0", "stride_1", "stride_2", "V", "C"])
def measure(
    logits, stride_0, stride_1, stride_2, next_ids,
    peaks, log_sums, partitions, next_logprobs, distances, teacher_sums, V, C,
    NEGATIVES: tl.constexpr, PAIRS: tl.constexpr, GAINS: tl.constexpr, R: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """Three reads of a position's logits: the roles' partitions, then D_t, then the teachers' partitions.

    peaks, log_sums (roles, C)    largest logit (nats), and log of the sum of exponentials under it (bits)
    partitions (roles, C)         log of the sum of exponentials, nats; a logit that is not finite is returned itself
    next_logprobs (roles, C)      nats
    distances (negatives, C)      D_t
    teacher_sums (pairs * S, C)   log partition of the teacher at each scored strength, bits
    """
    row, strides = tl.program_id(0).to(tl.int64), (stride_0, stride_1, stride_2)
    tile_RL = tile_ids(R, L)
    norms = row_norms(logits, strides, row, V, R, L)
    next_id = tl.load(next_ids + row)
    for r in tl.static_range(len(logits)):
        peak, log_sum = norms[r][0], norms[r][1]
        partition = tl.where(tl.abs(peak) == float("inf"), peak, peak + log_sum * LN_2)
        tl.store(partitions + r * C + row, partition)
        tl.store(peaks + r * C + row, peak)
        tl.store(log_sums + r * C + row, log_sum)
        next_logit = tl.load(logits[r] + row * strides[r] + next_id)
        tl.store(next_logprobs + r * C + row, next_logit - peak - log_sum * LN_2)
    found = row_distances(logits, strides, row, V, norms, NEGATIVES, R, L)
    for n in tl.static_range(len(NEGATIVES)):
        tl.store(distances + n * C + row, found[n])

    strengths = score_strengths(found, PAIRS, NEGATIVES, GAINS)
    tile_RL = tile_ids(R, L)
    teachers = ()
    for _ in tl.static_range(len(PAIRS) * len(GAINS)):
        teachers = teachers + (nothing(L),)
    for start in range(0, V, R * L):
        ids_RL = start + tile_RL
        bits = load_bits(logits, strides, row, ids_RL, V, norms)
        after = ()
        for p in tl.static_range(len(PAIRS)):
            anchor_RL = tl.where(ids_RL < V, bits[PAIRS[p][0]], float("-inf"))
            difference_RL = bits[0] - bits[PAIRS[p][1]]
            for s in tl.static_range(len(GAINS)):
                teacher_RL = tl.fma(strengths[p * len(GAINS) + s], difference_RL, anchor_RL)
                peak_L, sum_L = teachers[p * len(GAINS) + s]
                after = after + (added(peak_L, sum_L, teacher_RL, 1.0),)
        teachers = after
    for i in tl.static_range(len(PAIRS) * len(GAINS)):
        shift, log_sum = over_lanes(teachers[i][0], teachers[i][1], 1.0)
        tl.store(teacher_sums + i * C + row, shift + log_sum)
