"""Packs the stored values of a row into bytes for the page, exactly and small. shards/inspect/web/values.js reads them.

Arrays lie one after the other, each plane by plane (all lowest bytes, then the next ones), compressed as a whole.
Compact log-probs travel as their codes. Logarithms of JavaScript and numpy differ in the last bit of a float32, so the
distance between the two travels with them, and the page has the same numbers as Python.
"""

import json
import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from shards.format import schema
from shards.format.encoding import compact
from shards.format.plan import Plan
from shards.format.scores import Response, Scores

LEVEL = 6
"""Level 9 takes four times as long for 1.5% fewer bytes."""
WIDTHS = {"u8": 1, "i8": 1, "u24": 3, "f32": 4}

Arrays = dict[str, tuple[str, np.ndarray]]
"""name -> (kind, values); the kinds are those of WIDTHS."""


def pack_row(response: Response, pieces: Sequence[str], plan: Plan) -> bytes:
    """The values of a row, zlib-compressed. pieces: the text of each token."""
    units_T = np.array([len(piece.encode("utf-16-le")) // 2 for piece in pieces], dtype=np.int64)
    arrays: Arrays = {
        "input_ids": ("u24", response.input_ids),
        "loss_mask": ("u8", response.loss_mask),
        "text_units": ("u24", units_T),  # JavaScript counts text in units of 16 bits
        **dict(_positions(response.scores, plan)),
        **dict(_entries(response.scores, plan)),
    }
    return pack(arrays)


def pack(arrays: Arrays) -> bytes:
    """Any arrays, zlib-compressed."""
    header = json.dumps([[name, kind, np.size(values)] for name, (kind, values) in arrays.items()]).encode()
    parts = [struct.pack("<I", len(header)), header, *(_planes(kind, values) for kind, values in arrays.values())]
    return zlib.compress(b"".join(parts), LEVEL)


def _positions(scores: Scores, plan: Plan) -> Iterator[tuple[str, tuple[str, np.ndarray]]]:
    yield schema.SUPPORT_COUNT, ("u24", scores.support_count)
    for negative, distance_N in scores.l1_distance.items():
        yield schema.l1_distance_column(negative), ("f32", distance_N)
    for role in plan.roles:
        yield schema.next_logprob_column(role), ("f32", scores.next_logprob[role])
        yield schema.tail_logprob_column(role), ("f32", scores.tail_logprob[role])
    for pair, partition_NI in scores.tail_logpartition.items():
        yield schema.tail_logpartition_column(pair), ("f32", partition_NI)


def _entries(scores: Scores, plan: Plan) -> Iterator[tuple[str, tuple[str, np.ndarray]]]:
    yield schema.SUPPORT_GAPS, ("u24", compact.to_gaps(scores.support_ids))
    if plan.values == "float32":
        for role in plan.roles:
            yield schema.logprobs_column(role), ("f32", scores.logprobs[role])
        return
    unit_M = np.repeat(compact.units(scores.l1_distance[plan.unit_negative]), scores.support_count)
    codes = {role: compact.to_codes(scores.logprobs[role], unit_M) for role in plan.roles}
    for role, stored_M in compact.to_differences(codes).items():
        yield schema.codes_column(role), ("u24", stored_M)
    for role in plan.roles:
        yield f"{role}_ulps", ("i8", _ulps(scores.logprobs[role], codes[role], unit_M))


def _ulps(logprobs_M: np.ndarray, code_M: np.ndarray, unit_M: np.ndarray) -> np.ndarray:
    """How many float32 numbers the log-probs are away from those that the page computes from the codes, (M,)."""
    above_M = code_M - (compact.BIAS + compact.LINEAR_FROM)
    prob_M = ((np.maximum(above_M, 0) + compact.LINEAR_FROM) * unit_M.astype(np.float64)).astype(np.float32)
    logprob_M = np.log(prob_M, dtype=np.float64).astype(np.float32).astype(np.float64)
    page_M = (logprob_M + np.minimum(above_M, 0) / compact.STEPS_PER_NAT).astype(np.float32)
    apart_M = logprobs_M.view(np.int32).astype(np.int64) - page_M.view(np.int32)
    apart_M[code_M == 0] = 0
    assert np.abs(apart_M).max(initial=0) < 128, "codes are those of the log-probs"
    return apart_M


def _planes(kind: str, values: np.ndarray) -> bytes:
    flat = np.ravel(values)
    whole = flat.astype("<f4") if kind == "f32" else flat.astype("<i8")
    assert kind in ("f32", "i8") or (whole.min(initial=0) >= 0 and whole.max(initial=0) < 1 << 8 * WIDTHS[kind])
    return b"".join(
        whole.view(np.uint8).reshape(len(flat), whole.itemsize)[:, plane].tobytes() for plane in range(WIDTHS[kind])
    )
