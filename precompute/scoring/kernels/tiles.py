"""What the kernels share: tiles of the vocabulary, running sums in lanes, strengths, and the scores of a tile.

A program works on one position. It reads the vocabulary in tiles of (R, L): token r L + l of a tile is in row r and
lane l. Every lane keeps its own running maximum and sum, so that no thread waits for another one before the vocabulary
is read (docs/decisions/0012-vocabulary-kernels.md). Lanes are put together once, at the end.

So a tile's rows must be in registers of one thread. Triton lays them out so if it does not know that rows of logits
start at multiples of 16 bytes, and then reads four tokens with one thread. The kernels therefore take strides and V as
numbers that are not specialised on, one by one, because Triton specialises on the entries of a tuple.

Log-probs are in bits, as in `precompute.scoring.partitions`, unless a name says nats. `logits` and `strides` are tuples
with one entry for each role, dpo first; REFERENCE, NEGATIVES and PAIRS are indices into them. Products and sums that
scores depend on are written as `tl.fma`, so that every kernel rounds them alike.

Dimensions: C positions, V vocabulary, R rows and L lanes of a tile, T = R L tokens of a tile.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
TINY = tl.constexpr(1.1754943508222875e-38)
"""The smallest normal number: no score is below it, so that all have a log."""


@triton.jit
def nothing(L: tl.constexpr):
    """(maximum, sum) of an empty set, for every lane."""
    return tl.full((L,), float("-inf"), tl.float32), tl.zeros((L,), tl.float32)


@triton.jit
def added(peak_L, sum_L, x_RL, UNIT: tl.constexpr):
    """(maximum, sum of exponentials under it) with a tile added. UNIT: bits of one unit of the values."""
    new_L = tl.maximum(peak_L, tl.max(x_RL, 0))
    shift_L = tl.where(new_L == float("-inf"), 0.0, new_L)
    sum_L = sum_L * tl.exp2((peak_L - shift_L) * UNIT)
    return new_L, sum_L + tl.sum(tl.exp2((x_RL - shift_L[None, :]) * UNIT), 0)


@triton.jit
def log2_or_empty(total):
    """log2, -inf for 0; NaN stays."""
    return tl.where(total == 0.0, float("-inf"), tl.log2(tl.where(total == 0.0, 1.0, total)))


@triton.jit
def over_lanes(peak_L, sum_L, UNIT: tl.constexpr):
    """(maximum, log2 of the sum of exponentials under it) over all lanes; of an empty set 0 and -inf."""
    peak = tl.max(peak_L, 0)
    shift = tl.where(peak == float("-inf"), 0.0, peak)
    return shift, log2_or_empty(tl.sum(sum_L * tl.exp2((peak_L - shift) * UNIT), 0))


@triton.jit
def tile_ids(R: tl.constexpr, L: tl.constexpr):
    return tl.arange(0, R)[:, None] * L + tl.arange(0, L)[None, :]


@triton.jit
def load_norms(peaks, log_sums, row, C, ROLES: tl.constexpr):
    """Each role's (largest logit, log2 of the sum of exponentials under it) at a position."""
    found = ()
    for r in tl.static_range(ROLES):
        found = found + ((tl.load(peaks + r * C + row), tl.load(log_sums + r * C + row)),)
    return found


@triton.jit
def load_bits(logits, strides, row, ids_RL, V, norms):
    """Each role's log-probs of a tile. The largest logit is subtracted first, so that large logits lose no digits."""
    found = ()
    for r in tl.static_range(len(logits)):
        x_RL = tl.load(logits[r] + row * strides[r] + ids_RL, mask=ids_RL < V, other=norms[r][0])
        found = found + (tl.fma(x_RL - norms[r][0], LOG2_E, -norms[r][1]),)
    return found


@triton.jit
def load_column(values, row, C, NUMBER: tl.constexpr):
    """The entries of a position in (NUMBER, C)."""
    found = ()
    for i in tl.static_range(NUMBER):
        found = found + (tl.load(values + i * C + row),)
    return found


@triton.jit
def score_strengths(distances, PAIRS: tl.constexpr, NEGATIVES: tl.constexpr, GAINS: tl.constexpr):
    """w = gain D_t + 1e-3 for each pair and gain."""
    found = ()
    for p in tl.static_range(len(PAIRS)):
        for n in tl.static_range(len(NEGATIVES)):
            if NEGATIVES[n] == PAIRS[p][1]:
                for s in tl.static_range(len(GAINS)):
                    found = found + (GAINS[s] * distances[n] + 0.001,)
    return found


@triton.jit
def node_strengths(
    distances, PAIRS: tl.constexpr, NEGATIVES: tl.constexpr, GAINS: tl.constexpr, STRENGTHS: tl.constexpr
):
    """w_j = max(gain_j D_t + 1e-3, strength_j) for each pair and each node above 0."""
    found = ()
    for p in tl.static_range(len(PAIRS)):
        for n in tl.static_range(len(NEGATIVES)):
            if NEGATIVES[n] == PAIRS[p][1]:
                for j in tl.static_range(len(GAINS)):
                    found = found + (tl.maximum(GAINS[j] * distances[n] + 0.001, STRENGTHS[j]),)
    return found


@triton.jit
def tile_scores(bits, strengths, teacher_sums, REFERENCE: tl.constexpr, PAIRS: tl.constexpr, S: tl.constexpr):
    """`support.token_scores` of a tile."""
    reference_RL = bits[REFERENCE]
    reference_prob_RL = tl.exp2(reference_RL)
    best_RL = tl.full(reference_RL.shape, TINY, tl.float32)
    for p in tl.static_range(len(PAIRS)):
        difference_RL = bits[0] - bits[PAIRS[p][1]]
        for s in tl.static_range(S):
            w = strengths[p * S + s]
            teacher_RL = tl.fma(w, difference_RL, bits[PAIRS[p][0]]) - teacher_sums[p * S + s]
            ratio_RL = tl.fma(tl.abs(reference_RL - teacher_RL), LN_2 / w, 0.5)
            best_RL = tl.maximum(best_RL, tl.maximum(tl.exp2(teacher_RL), reference_prob_RL) * ratio_RL)
    return best_RL
