"""The kernels that write one value for a token: ids and log-probs of the kept ones, or the scores of all.

Dimensions: C positions, V vocabulary, R rows and L lanes of a tile, T = R L tokens of a tile.
"""

import triton
import triton.language as tl

from precompute.scoring.kernels.tiles import (
    LN_2,
    load_bits,
    load_column,
    load_norms,
    score_strengths,
    tile_ids,
    tile_scores,
)


@triton.jit(do_not_specialize=["stride_0", "stride_1", "stride_2", "V", "C", "capacity"])
def pack_tokens(
    logits, stride_0, stride_1, stride_2, peaks, log_sums, kept, counts, ends, ids, logprobs, V, C, capacity,
    R: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """Ids and log-probs of the kept tokens, one position after the other, from the bits of `keep_tokens`.

    ends (C,)                    tokens kept up to and with each position
    ids (capacity,)              ascending inside a position
    logprobs (roles, capacity)   nats
    """
    row, strides = tl.program_id(0).to(tl.int64), (stride_0, stride_1, stride_2)
    norms = load_norms(peaks, log_sums, row, C, len(logits))
    first = tl.load(ends + row) - tl.load(counts + row)
    kept += row * tl.cdiv(V, R * L) * L
    lane_L = tl.arange(0, L)
    for start in range(0, V, R * L):
        byte_L = tl.load(kept + start // R + lane_L).to(tl.int32)
        if tl.max(byte_L, 0) > 0:
            kept_T = tl.reshape((byte_L[None, :] >> tl.arange(0, R)[:, None]) & 1, (R * L,))
            ids_T = start + tl.arange(0, R * L)
            place_T = first + tl.cumsum(kept_T, 0) - 1
            tl.store(ids + place_T, ids_T, mask=kept_T != 0)
            for r in tl.static_range(len(logits)):
                x_T = tl.load(logits[r] + row * strides[r] + ids_T, mask=kept_T != 0, other=0.0)
                nats_T = x_T - norms[r][0] - norms[r][1] * LN_2
                tl.store(logprobs + r * capacity + place_T, nats_T, mask=kept_T != 0)
            first += tl.sum(kept_T, 0)


@triton.jit(do_not_specialize=["stride_0", "stride_1", "stride_2", "V", "C"])
def write_scores(
    logits, stride_0, stride_1, stride_2, peaks, log_sums, distances, teacher_sums, scores, V, C,
    REFERENCE: tl.constexpr, NEGATIVES: tl.constexpr, PAIRS: tl.constexpr, GAINS: tl.constexpr,
    R: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """scores (C, V): `support.token_scores`, for the sample that the threshold is set on."""
    row, strides = tl.program_id(0).to(tl.int64), (stride_0, stride_1, stride_2)
    norms = load_norms(peaks, log_sums, row, C, len(logits))
    strengths = score_strengths(load_column(distances, row, C, len(NEGATIVES)), PAIRS, NEGATIVES, GAINS)
    sums = load_column(teacher_sums, row, C, len(PAIRS) * len(GAINS))
    for start in range(0, V, R * L):
        ids_RL = start + tile_ids(R, L)
        bits = load_bits(logits, strides, row, ids_RL, V, norms)
        score_RL = tile_scores(bits, strengths, sums, REFERENCE, PAIRS, len(GAINS))
        tl.store(scores + row * V + ids_RL, score_RL, mask=ids_RL < V)
