"""Where a cache's bytes go, and the minimum for the ids of the kept tokens.

Dimensions: N positions, M kept tokens of them.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import zstandard

from benchmarks.fidelity.supports import as_batch
from benchmarks.loading.options import LoadingOptions
from benchmarks.loading.synthetic import make_scores, power_laws
from shards.format.encoding import codec as stored_rows
from shards.format.schema import Level, Values
from shards.format.scores import Scores, concatenate
from shards.format.writer import COMPRESSION_LEVEL

LEVELS: tuple[Level, ...] = ("position", "node", "entry")
"""Columns with values per position; names and tokens of a row are left out."""


def column_bytes(
    scores: Scores, values: Values, vocabulary_size: int, levels: Sequence[Level] = LEVELS
) -> dict[str, float]:
    """Stored bytes a position of every column of these levels."""
    batch, plan = as_batch(scores, values, vocabulary_size)
    packer, flat = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL), stored_rows.flatten(batch)
    names = [column.name for column in plan.columns() if column.level in levels]
    sizes = {name: len(packer.compress(memoryview(flat[name].values).cast("B"))) for name in names}
    return {name: size / scores.num_positions for name, size in sizes.items()}


GROUPS = {
    "ids": ("support_gaps",),
    "reference": ("reference_codes",),
    "dpo": ("dpo_codes",),
    "reverse": ("reverse_codes",),
    "counts": ("support_count",),
    "D_t": ("l1_distance",),
    "next tokens": ("dpo_next", "reverse_next", "reference_next"),
    "tails": ("dpo_tail_code", "reverse_tail_code", "reference_tail_code"),
    "tail partitions": ("dpo_reverse_tail_partition", "reference_reference_tail_partition"),
}
"""What the columns of compact values hold -> how their names begin."""


def groups(scores: Scores, vocabulary_size: int) -> dict[str, float]:
    """Bytes a position of compact values by what they hold."""
    sizes = column_bytes(scores, "compact", vocabulary_size)
    found = {g: sum(size for n, size in sizes.items() if n.startswith(begin)) for g, begin in GROUPS.items()}
    assert math.isclose(sum(found.values()), sum(sizes.values())), "every column belongs to one group"
    return found


def any_set(scores: Scores, vocabulary_size: int) -> float:
    """Bytes per position of the kept ids if every set of the same size were equally likely."""
    count_N = torch.from_numpy(scores.support_count.astype(np.float64))
    log_sets_N = torch.lgamma(torch.tensor(vocabulary_size + 1.0).double()) - torch.lgamma(count_N + 1)
    log_sets_N -= torch.lgamma(vocabulary_size - count_N + 1)
    return float(log_sets_N.mean()) / math.log(2) / 8


def by_magnitude(numbers: Mapping[str, np.ndarray]) -> float:
    """Bytes of an ideal coder of each number's length in bits, with the bits below its first one stored unchanged.

    numbers: arrays of non-negative ones, each with its own code lengths, which cost nothing here.
    """
    bits = 0.0
    for number_M in numbers.values():
        length_M = np.frexp(number_M.astype(np.float64))[1]
        _, times = np.unique(length_M, return_counts=True)
        bits += float((times * np.log2(len(number_M) / times)).sum() + np.maximum(length_M - 1, 0).sum())
    return bits / 8


def synthetic(vocabulary: int, rows: int, top_k: int) -> Scores:
    """Scores of benchmarks.loading, made without models."""
    options = LoadingOptions(
        vocabulary=vocabulary, rows=rows, top_k=top_k, max_top_k=min(LoadingOptions.max_top_k, vocabulary)
    )
    generator, laws = np.random.default_rng(options.seed), power_laws(options)
    return concatenate([make_scores(options.length, options, laws, generator)[0] for _ in range(rows)])
