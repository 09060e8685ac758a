"""Chooses the rows of the page: which ones, how many fit, and both responses of a pair together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shards.cache import ShardCache
from shards.errors import OptionError
from shards.format.index import RowIndex
from shards.spread import sample

DEFAULT_SAMPLE = 200
EMBEDDED = 1.4
"""Bytes in the page for each byte of a shard, about: base64, and what zlib compresses worse than zstd."""
TOKEN_BYTES = 12
"""Bytes of a token of text in the page, about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the user asked for: some rows, or a sample of the cache. seed: draws it at random; None: evenly spread."""

    rows: Sequence[int] | None = None
    sample: int = DEFAULT_SAMPLE
    seed: int | None = None


def parse_rows(text: str) -> list[int]:
    """Row numbers of a text such as `3,17,40-59`. Raises OptionError."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise OptionError(f"rows: expected row numbers such as 3,17,40-59, got {text!r}")
        found += range(int(first), int(last if dash else first) + 1)
    return list(dict.fromkeys(found))


def groups(cache: ShardCache, choice: Choice, budget_bytes: float) -> list[list[int]]:
    """The rows in groups that go into the page whole: the responses of one pair, in the order of the cache.

    A sample has as many as the budget is expected to hold. Raises OptionError for a row that is not there.
    """
    if choice.rows is not None:
        for row in choice.rows:
            if not 0 <= row < len(cache):
                raise OptionError(f"rows: expected numbers under {len(cache):,}, got {row}")
        return _together(choice.rows, choice.rows, cache.index)
    index = cache.index
    per_pair = len(cache) / len(np.unique(index.pair_id))
    fitting = budget_bytes / (_row_bytes(cache) + 1)
    wanted = max(1, round(min(choice.sample, fitting) / per_pair))
    if choice.seed is None:
        rows = sample(cache, wanted)
    else:
        drawn = np.random.default_rng(choice.seed).choice(len(cache), min(wanted, len(cache)), replace=False)
        rows = sorted(drawn.tolist())
    return _together(rows, None, index)


def _row_bytes(cache: ShardCache) -> float:
    """Bytes in the page of a row of the cache, on average."""
    shards = sum(entry.bytes for entry in cache.manifest.entries)
    return (EMBEDDED * shards + TOKEN_BYTES * float(cache.index.num_tokens.sum())) / len(cache)


def _together(rows: Sequence[int], allowed: Sequence[int] | None, index: RowIndex) -> list[list[int]]:
    """The rows, each with the other rows of its pair, which must be among the allowed ones."""
    order = np.argsort(index.pair_id, kind="stable")
    sorted_ids = index.pair_id[order]
    may = None if allowed is None else set(allowed)
    found: dict[int, list[int]] = {}
    for row in rows:
        pair = int(index.pair_id[row])
        if pair not in found:
            first, end = np.searchsorted(sorted_ids, [pair, pair + 1])
            partners = order[first:end].tolist()
            found[pair] = [partner for partner in partners if may is None or partner in may]
    return list(found.values())
