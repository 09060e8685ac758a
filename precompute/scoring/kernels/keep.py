"""The kernels that choose the kept tokens of a position and sum up the rest: one read, and a second one for few.

Dimensions: C positions, V vocabulary, J strength nodes, R rows and L lanes of a tile.
"""

import triton
import triton.language as tl

from precompute.scoring.kernels.tiles import (
    LN_2,
    added,
    load_bits,
    load_column,
    load_norms,
    node_strengths,
    nothing,
    over_lanes,
    score_strengths,
    tile_ids,
    tile_scores,
)

LAST_ID = tl.constexpr(0x7FFFFFFF)


@triton.jit(do_not_specialize=["stride_0", "stride_1", "stride_2", "V", "C", "left_out"])
def keep_tokens(
    logits, stride_0, stride_1, stride_2, peaks, log_sums, distances, teacher_sums,
    wanted, thresholds, cuts, counts, kept, tails, tail_partitions, V, C, left_out,
    REFERENCE: tl.constexpr, NEGATIVES: tl.constexpr, PAIRS: tl.constexpr, GAINS: tl.constexpr,
    NODE_GAINS: tl.constexpr, NODE_STRENGTHS: tl.constexpr, R: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """One read of a position's logits: which tokens are kept, and the rest summed up.

    Kept are scores over the position's threshold, and of those equal to it the ids below its cut. Positions whose
    `wanted` equals `left_out` stay as they are.

    counts (C,)                        tokens kept
    kept (C, tiles, L)                 bit r of a byte: whether the tile's token r L + lane is kept
    tails (roles, C)                   log of the mass that is not kept, nats
    tail_partitions (pairs, C, J - 1)  the same for the teacher's logits at the nodes above 0, nats
    """
    row, strides = tl.program_id(0).to(tl.int64), (stride_0, stride_1, stride_2)
    if tl.load(wanted + row) == left_out:
        return
    norms = load_norms(peaks, log_sums, row, C, len(logits))
    distance = load_column(distances, row, C, len(NEGATIVES))
    strengths = score_strengths(distance, PAIRS, NEGATIVES, GAINS)
    sums = load_column(teacher_sums, row, C, len(PAIRS) * len(GAINS))
    nodes = node_strengths(distance, PAIRS, NEGATIVES, NODE_GAINS, NODE_STRENGTHS)
    threshold, cut = tl.load(thresholds + row), tl.load(cuts + row)
    tile_RL, lane_L = tile_ids(R, L), tl.arange(0, L)
    kept += row * tl.cdiv(V, R * L) * L
    count_L = tl.zeros((L,), tl.int32)
    roles, teachers = (), ()
    for _ in tl.static_range(len(logits)):
        roles = roles + (nothing(L),)
    for _ in tl.static_range(len(nodes)):
        teachers = teachers + (nothing(L),)
    for start in range(0, V, R * L):
        ids_RL = start + tile_RL
        bits = load_bits(logits, strides, row, ids_RL, V, norms)
        score_RL = tile_scores(bits, strengths, sums, REFERENCE, PAIRS, len(GAINS))
        above_RL = (score_RL > threshold) | ((score_RL == threshold) & (ids_RL < cut))
        kept_RL = (above_RL & (ids_RL < V)).to(tl.int32)
        count_L += tl.sum(kept_RL, 0)
        byte_L = tl.sum(kept_RL << tl.arange(0, R)[:, None], 0)
        tl.store(kept + start // R + lane_L, byte_L.to(tl.uint8))
        outside_RL = (ids_RL < V) & (kept_RL == 0)
        after = ()
        for r in tl.static_range(len(logits)):
            after = after + (added(roles[r][0], roles[r][1], tl.where(outside_RL, bits[r], float("-inf")), 1.0),)
        roles = after
        after = ()
        for p in tl.static_range(len(PAIRS)):
            anchor_RL = tl.where(outside_RL, bits[PAIRS[p][0]], float("-inf"))
            difference_RL = bits[0] - bits[PAIRS[p][1]]
            for j in tl.static_range(len(NODE_GAINS)):
                peak_L, sum_L = teachers[p * len(NODE_GAINS) + j]
                node_RL = tl.fma(nodes[p * len(NODE_GAINS) + j], difference_RL, anchor_RL)
                after = after + (added(peak_L, sum_L, node_RL, 1.0),)
        teachers = after
    tl.store(counts + row, tl.sum(count_L, 0))
    for r in tl.static_range(len(logits)):
        shift, log_sum = over_lanes(roles[r][0], roles[r][1], 1.0)
        tl.store(tails + r * C + row, (shift + log_sum) * LN_2)
    for p in tl.static_range(len(PAIRS)):
        for j in tl.static_range(len(NODE_GAINS)):
            peak_L, sum_L = teachers[p * len(NODE_GAINS) + j]
            shift, log_sum = over_lanes(peak_L, sum_L, 1.0)
            tl.store(tail_partitions + (p * C + row) * len(NODE_GAINS) + j, (shift + log_sum) * LN_2)


@triton.jit
def kth_largest(
    logits, strides, row, V, norms, strengths, sums, k, target,
    BY_ID: tl.constexpr, REFERENCE: tl.constexpr, PAIRS: tl.constexpr, S: tl.constexpr,
    R: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """(key, entries above it, entries not below it) of the k-th largest key of a position.

    The key is a score's bits, which ascend with positive scores; BY_ID: of the scores with the bits `target`, how
    early the id is. Found four bits at a time, from the top, with a read each.
    """
    key, above, at_least = 0, 0, V
    for turn in range(8):
        shift = 28 - 4 * turn
        counts = ()
        for _ in tl.static_range(15):
            counts = counts + (tl.zeros((L,), tl.int32),)
        for start in range(0, V, R * L):
            ids_RL = start + tile_ids(R, L)
            bits = load_bits(logits, strides, row, ids_RL, V, norms)
            key_RL = tile_scores(bits, strengths, sums, REFERENCE, PAIRS, S).to(tl.int32, bitcast=True)
            if BY_ID:
                key_RL = tl.where(key_RL == target, LAST_ID - ids_RL, -1)
            digits_RL = (tl.where(ids_RL < V, key_RL, -1) >> shift) - (key >> shift)
            after = ()
            for d in tl.static_range(15):
                after = after + (counts[d] + tl.sum((digits_RL > d).to(tl.int32), 0),)
            counts = after
        digit = 0
        for d in tl.static_range(15):
            count = tl.sum(counts[d], 0)
            digit += (count >= k).to(tl.int32)
            at_least = tl.where(count >= k, count, at_least)
        for d in tl.static_range(15):
            count = tl.sum(counts[d], 0)
            above = tl.maximum(above, tl.where(count < k, count, 0))
        key += digit << shift
    return key, above, at_least


@triton.jit(do_not_specialize=["stride_0", "stride_1", "stride_2", "V", "C", "lowest", "highest"])
def own_thresholds(
    logits, stride_0, stride_1, stride_2, peaks, log_sums, distances, teacher_sums,
    counts, wanted, thresholds, cuts, V, C, lowest, highest,
    REFERENCE: tl.constexpr, NEGATIVES: tl.constexpr, PAIRS: tl.constexpr, GAINS: tl.constexpr,
    R: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """A threshold and a cut of its own for each position that keeps too few or too many: then it keeps `wanted`.

    Of equal scores the lowest ids are kept. `wanted` is 0, and nothing is read, where the count is right.
    """
    row, strides = tl.program_id(0).to(tl.int64), (stride_0, stride_1, stride_2)
    count = tl.load(counts + row)
    k = tl.where(count < lowest, lowest, tl.where(count > highest, highest, 0))
    tl.store(wanted + row, k)
    if k == 0:
        return
    norms = load_norms(peaks, log_sums, row, C, len(logits))
    strengths = score_strengths(load_column(distances, row, C, len(NEGATIVES)), PAIRS, NEGATIVES, GAINS)
    sums = load_column(teacher_sums, row, C, len(PAIRS) * len(GAINS))
    found, above, at_least = kth_largest(
        logits, strides, row, V, norms, strengths, sums, k, 0, False, REFERENCE, PAIRS, len(GAINS), R, L
    )  # fmt: skip
    tl.store(thresholds + row, found.to(tl.float32, bitcast=True))
    cut = V
    if at_least > k:
        last, _, _ = kth_largest(
            logits, strides, row, V, norms, strengths, sums, k - above, found,
            True, REFERENCE, PAIRS, len(GAINS), R, L,
        )  # fmt: skip
        cut = LAST_ID - last + 1
    tl.store(cuts + row, cut)
