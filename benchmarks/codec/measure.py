"""Measures a codec: bytes, errors, the gradient's angle, seconds. Plain numbers, as in benchmarks.fidelity.

Dimensions: M kept tokens of all positions.
"""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from benchmarks.codec.codecs import Arrays, Codec, by_id, compressed, decompressed, law
from benchmarks.codec.sizes import by_magnitude, column_bytes
from benchmarks.fidelity.dense import Dense
from benchmarks.fidelity.measure import GOAL_CASES, cases
from benchmarks.fidelity.supports import SUPPORTS, keep, rank, scores_on, stored
from shards.format.schema import ROLES
from shards.format.scores import Scores, concatenate

CASES = [GOAL_CASES[0], *GOAL_CASES[2:]]
"""Gains 2, 10 and 20 of the default teacher."""
LIKELY = 1e-3
TIMED_POSITIONS = 2_000
Row = dict[str, Any]


def measure(dense: Dense, codecs: Sequence[Codec], top_k: int, repeats: int) -> list[Row]:
    """A row for each codec that supports these positions: ours and plain ones on the ragged support of a cache, with a
    mean of top_k tokens; those that keep the same number everywhere on the best top_k tokens."""
    codecs = [c for c in codecs if c.serves(dense.vocabulary_size)]
    counts = dict.fromkeys(c.top_k for c in codecs)
    exact = {count: supported(dense, count, top_k) for count in counts}
    angles = {count: _angles(dense, scores) for count, scores in exact.items()}
    seconds = decode_seconds(codecs, exact, repeats)
    return [
        measured(dense, c, exact[c.top_k], angles[c.top_k]) | {"seconds": seconds[c.name]}
        for c in tqdm(codecs, desc="codecs", unit="codec")
    ]


def supported(dense: Dense, count: int | None, top_k: int) -> Scores:
    """Exact scores on the build's support, or on one of `count` tokens everywhere by the same score."""
    support = SUPPORTS["ours" if count is None else "ours, equally many everywhere"]
    return scores_on(dense, keep(rank(dense, support), support, count or top_k))


def pack(codec: Codec, scores: Scores) -> Arrays:
    with law(codec.law):
        return codec.pack(scores)


def measured(dense: Dense, codec: Codec, exact: Scores, exact_angles: np.ndarray) -> Row:
    """Bytes per position of ids and log-probs, and with everything else of a cache, stored as ours is."""
    arrays, width = pack(codec, exact), dense.vocabulary_size
    with law(codec.law):
        found = by_id(codec.unpack(arrays, exact), stored(exact, codec.values, width)[0])
        rest = sum(column_bytes(exact, codec.values, width, ("position", "node")).values())
    kept = sum(map(len, compressed(arrays).values())) / exact.num_positions
    angles = _angles(dense, found)
    return {
        "name": codec.name,
        "mean": exact.num_entries / exact.num_positions,
        "kept_bytes": kept,
        "magnitude_bytes": None if codec.numbers is None else by_magnitude(codec.numbers(arrays)) / exact.num_positions,
        "bytes": kept + rest,
        "angle": angles.max(axis=0).tolist(),
        "exact_angle": exact_angles.max(axis=0).tolist(),
        "excess": float((angles - exact_angles).max()),
        **errors(found, exact),
    }


def errors(found: Scores, exact: Scores) -> Row:
    """Of the three models' log-probs on the kept tokens, nats: the worst, the mean, the worst of likely tokens."""
    exact_M = np.concatenate([exact.logprobs[role].astype(np.float64) for role in ROLES])
    error_M = np.abs(np.concatenate([found.logprobs[role].astype(np.float64) for role in ROLES]) - exact_M)
    likely_M = exact_M > math.log(LIKELY)
    return {
        "worst": float(error_M.max()),
        "mean_error": float(error_M.mean()),
        "worst_likely": float(error_M[likely_M].max()),
    }


def _angles(dense: Dense, scores: Scores) -> np.ndarray:
    """Degrees, (teachers, stages)."""
    return np.array([row["angle"] for row in cases(dense, scores, CASES)])


def decode_seconds(codecs: Sequence[Codec], exact: Mapping[int | None, Scores], repeats: int) -> dict[str, float]:
    """The processor's seconds for a million positions, decompression included: medians of measurements in turn."""
    found: dict[str, list[float]] = {codec.name: [] for codec in codecs}
    many = {count: concatenate([s] * math.ceil(TIMED_POSITIONS / s.num_positions)) for count, s in exact.items()}
    packed = {}
    for codec in codecs:
        arrays = pack(codec, many[codec.top_k])
        packed[codec.name] = (arrays, compressed(arrays))
    for turn in range(repeats + 1):
        for codec in codecs:
            like, squeezed = packed[codec.name]
            scores = many[codec.top_k]
            with law(codec.law):
                began = time.process_time()
                codec.unpack(decompressed(squeezed, like), scores)
                used = time.process_time() - began
            if turn:
                found[codec.name].append(used * 1e6 / scores.num_positions)
    return {name: statistics.median(seconds) for name, seconds in found.items()}
