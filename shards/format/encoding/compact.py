"""Compact values: log-probs as fixed-point probabilities in small integers. Pure; docs/format.md has the rule.

A log-prob l is stored as a code c, with a unit s that depends on the position:

    c = round(exp(l) / s)                       if that is 256 or more: the probability, in units of s
    c = 256 + round(256 (l - log(256 s)))       else, at most 255: the log-prob, in steps of 1/256 nat
    s = 2^(e - 20),  e = floor(log2(10 D_t)), clipped to [-3, 0]

The gradient of a divergence weighs the error of a log-prob with the probability of its token. So an error that is the
same in *probability* for every token puts the bits where they count. An adaptive loss weighs a position with
beta / w_t, so the unit shrinks with D_t. A token that is unlikely under the models can be likely under the teacher,
which multiplies the error of its log-prob by w_t. So no log-prob has an error over 1/511 nat, and a probability of
255.5 s or more has an error of s / 2 at most. Tails are stored as -log in steps of 2^-11 nat. A value that has no code
is refused, never clipped.

The models differ little, so their codes do: stored are the reference's codes, dpo's minus the reference's, and
reverse's minus the mirror image of dpo's, 2 reference - dpo. All have 24 bits and are stored as two columns, one byte
and two bytes, because zstd compresses them better that way.

Dimensions: N positions, M values of any kind, each with its position's unit, J strength nodes, I = J - 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shards.errors import OptionError
from shards.format.schema import ROLES, Role
from shards.format.scores import LOGPROB_TOLERANCE

UNIT_BITS = 20
"""A probability is stored in units of 2^-20 if D_t is 0.1 or more."""
MAX_FINER_BITS = 3
"""Units get at most 2^3 times finer; float32 itself has 2^-24 near 1."""
COARSE_DISTANCE = 0.1
LINEAR_FROM = 256
"""Codes of this value or more are probabilities; smaller ones are log-probs."""
STEPS_PER_NAT = 256
BIAS = 1 << 17
"""Added to stored codes; 0 is -inf and 1 is any log-prob below -520 nats."""
MASK = (1 << 24) - 1
TAIL_STEPS_PER_NAT = 1 << 11
"""For tails and their log partitions; the interpolation between nodes needs the same precision in both."""
MAX_TAIL_STEPS = 1 << 23
"""Upper limit of the steps of a tail, and of a log partition from one node to the next."""
MAX_TAIL_NATS = MAX_TAIL_STEPS // TAIL_STEPS_PER_NAT

Codes = dict[Role, np.ndarray]


def finer_bits(l1_distance_N: np.ndarray) -> np.ndarray:
    """How many bits finer than 2^-20 each position's unit is, (N,) int, in [0, 3]: -floor(log2(10 D_t)), clipped."""
    _, exponent_N = np.frexp(np.asarray(l1_distance_N, dtype=np.float64) / COARSE_DISTANCE)
    finer_N = np.clip(1 - exponent_N.astype(np.int64), 0, MAX_FINER_BITS)
    return np.where(np.asarray(l1_distance_N) > 0, finer_N, MAX_FINER_BITS)


def units(l1_distance_N: np.ndarray) -> np.ndarray:
    """s of each position, (N,) float32: the probability of one step of a code."""
    return np.ldexp(np.float32(1), -UNIT_BITS - finer_bits(l1_distance_N)).astype(np.float32)


def to_codes(logprobs_M: np.ndarray, unit_M: np.ndarray) -> np.ndarray:
    """Biased codes, (M,) int64 in [0, 2^24), of log-probs in nats, at most 0 (up to rounding); -inf becomes 0.

    Raises OptionError for NaN and for values above 0.
    """
    logprobs_M = np.asarray(logprobs_M, dtype=np.float64)
    unit_M = np.asarray(unit_M, dtype=np.float64)
    _require(logprobs_M <= LOGPROB_TOLERANCE, "log-probs of 0 or less", logprobs_M)
    linear_M = np.rint(np.exp(logprobs_M) / unit_M)
    steps_M = np.rint(STEPS_PER_NAT * (logprobs_M - np.log(LINEAR_FROM * unit_M)))
    code_M = np.where(linear_M >= LINEAR_FROM, linear_M, np.maximum(LINEAR_FROM + steps_M, 1 - BIAS))
    return np.where(np.isneginf(logprobs_M), 0, code_M + BIAS).astype(np.int64)


def from_codes(code_M: np.ndarray, unit_M: np.ndarray) -> np.ndarray:
    """Log-probs, (M,) float32, of biased codes (M,) int32."""
    above_M = code_M - np.int32(BIAS + LINEAR_FROM)  # steps above the code where log-probs change to probabilities
    prob_M = np.maximum(above_M, 0).astype(np.float32)
    prob_M += np.float32(LINEAR_FROM)
    prob_M *= unit_M
    logprob_M = np.log(prob_M, out=prob_M)
    below_M = np.minimum(above_M, 0, out=above_M).astype(np.float32)
    below_M *= np.float32(1 / STEPS_PER_NAT)
    logprob_M += below_M
    if not code_M.min(initial=1):
        logprob_M[code_M == 0] = -np.inf
    return logprob_M


def to_tail_codes(tail_N: np.ndarray) -> np.ndarray:
    """Codes, (N,) int64 in [0, 2^24), of log tail masses in nats, at most 0 (up to rounding); -inf becomes 0.

    Raises OptionError for NaN, for values above 0 and for finite values below -4,096 nats.
    """
    steps_N = np.rint(-tail_N.astype(np.float64) * TAIL_STEPS_PER_NAT)
    held_N = (tail_N <= LOGPROB_TOLERANCE) & ((steps_N < MAX_TAIL_STEPS) | np.isneginf(tail_N))
    _require(held_N, f"log tail masses from -{MAX_TAIL_NATS:,} to 0 nats", tail_N)
    return np.where(np.isneginf(tail_N), 0, steps_N + 1).astype(np.int64)


def from_tail_codes(code_N: np.ndarray) -> np.ndarray:
    """Log tail masses, (N,) float32, of codes (N,) int32."""
    return np.where(code_N == 0, np.float32(-np.inf), (1 - code_N) / np.float32(TAIL_STEPS_PER_NAT)).astype(np.float32)


def to_differences(codes: Mapping[Role, np.ndarray]) -> Codes:
    """The stored form: the reference's codes, and for other roles the difference from their prediction, 24 bits."""
    reference, dpo = codes["reference"], codes["dpo"]
    found = {"reference": reference, "dpo": _zigzag(dpo - reference)}
    if "reverse" in codes:
        found["reverse"] = _zigzag(codes["reverse"] - 2 * reference + dpo)
    return {role: found[role].astype(np.uint32) for role in ROLES if role in found}


def from_differences(stored: Mapping[Role, np.ndarray]) -> Codes:
    """The codes, int32, from the output of `to_differences`; reverse only if requested."""
    reference = stored["reference"].view(np.int32)
    codes: Codes = {"reference": reference}
    codes["dpo"] = _unzigzag(stored["dpo"])
    codes["dpo"] += reference
    codes["dpo"] &= MASK
    if "reverse" in stored:
        codes["reverse"] = _unzigzag(stored["reverse"])
        codes["reverse"] += reference
        codes["reverse"] += reference
        codes["reverse"] -= codes["dpo"]
        codes["reverse"] &= MASK
    return codes


def to_gaps(ids_M: np.ndarray) -> np.ndarray:
    """Token ids of a row, ascending inside a position, as differences to the previous id, modulo 2^24; (M,) uint32.

    Raises OptionError for ids outside [0, 2^24).
    """
    _require((ids_M >= 0) & (ids_M <= MASK), f"token ids from 0 to {MASK:,}", ids_M)
    gap_M: Any = np.diff(ids_M.astype(np.int64), prepend=0)
    return (gap_M & MASK).astype(np.uint32)


def from_gaps(gap_M: np.ndarray, size_R: Sequence[int] | None = None) -> np.ndarray:
    """Token ids, (M,) int32, of one row, or of concatenated rows of size_R entries each."""
    ids_M = np.empty(len(gap_M), dtype=np.uint32)
    start = 0
    for size in [len(gap_M)] if size_R is None else size_R:
        np.cumsum(gap_M[start : start + size], dtype=np.uint32, out=ids_M[start : start + size])
        start += size
    ids_M &= np.uint32(MASK)
    return ids_M.view(np.int32)


def to_partition_codes(partition_NI: np.ndarray, empty_N: np.ndarray) -> np.ndarray:
    """Log partitions at the nodes above zero, (N, J - 1) nats, as differences from node to node, 24 bits each.

    The first is the difference from zero. 0 at positions without a tail (`empty_N`), where all must be -inf. Raises
    OptionError for other values that are not finite, and for a difference over 4,000 nats, which 24 bits cannot hold.
    """
    empty_N1 = empty_N[:, None]
    _require(np.isneginf(partition_NI) | ~empty_N1, "log partitions of -inf where the tail is empty", partition_NI)
    _require(np.isfinite(partition_NI) | empty_N1, "finite log partitions of a tail", partition_NI)
    steps_NI = np.rint(np.where(empty_N1, 0.0, partition_NI) * float(TAIL_STEPS_PER_NAT))
    change_NI = np.diff(steps_NI, axis=1, prepend=0.0)
    held_NI = np.abs(change_NI) < MAX_TAIL_STEPS
    _require(held_NI, f"log partitions that differ by under {MAX_TAIL_NATS:,} nats", partition_NI)
    return _zigzag(change_NI.astype(np.int64)).astype(np.uint32)


def from_partition_codes(code_NI: np.ndarray, empty_N: np.ndarray) -> np.ndarray:
    """Log partitions, (N, J - 1) float32; -inf at positions without a tail."""
    found_NI = np.cumsum(_unzigzag(code_NI), axis=1, dtype=np.int32).astype(np.float32)
    found_NI /= TAIL_STEPS_PER_NAT
    found_NI[empty_N] = -np.inf
    return found_NI


def split(value_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """24-bit numbers as their lowest byte, uint8, and their upper two, uint16."""
    return (value_M & 0xFF).astype(np.uint8), (value_M >> 8).astype(np.uint16)


def join(low_M: np.ndarray, high_M: np.ndarray) -> np.ndarray:
    """24-bit numbers, uint32, from `split`."""
    value_M = high_M.astype(np.uint32)
    value_M <<= np.uint32(8)
    value_M |= low_M
    return value_M


def _require(held: np.ndarray, expected: str, values: np.ndarray) -> None:
    """Raise OptionError, naming the first value that has no code, unless all have one."""
    if not held.all():
        first = values[~held][0]
        raise OptionError(f"values: expected {expected}, got {first:,.9g}; build with --values float32")


def _zigzag(value: Any) -> Any:
    """Signed numbers modulo 2^24 as unsigned ones that are small if the number is near zero."""
    centred = _centred(value)
    return ((centred << 1) ^ (centred >> 63)) & MASK


def _unzigzag(value: np.ndarray) -> np.ndarray:
    """Inverse of `_zigzag`, modulo 2^24; int32, a new array."""
    signed = value.view(np.int32)
    sign = signed & np.int32(1)
    np.negative(sign, out=sign)
    sign ^= signed >> np.int32(1)
    return sign


def _centred(value: Any) -> Any:
    """The number in [-2^23, 2^23) that equals `value` modulo 2^24."""
    return ((value + (1 << 23)) & MASK) - (1 << 23)
