"""A fixed, evenly spread sample of a cache's rows, for estimates that do not need all rows."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from shards.cache import ShardCache
from shards.format.encoding.selection import Selection
from shards.format.schema import ROLES
from shards.format.scores import Scores
from shards.progress import progress
from shards.teacher.spec import TeacherSpec

ROWS_AT_A_TIME = 16
FEW_SHARDS = 8
"""Shards that are fetched for a sample, at most."""


def spread(total: int, limit: int) -> list[int]:
    """All of `total` rows, or `limit` of them at equal distances, including the first and the last."""
    if total <= limit:
        return list(range(total))
    return [int(row) for row in np.linspace(0, total - 1, limit).round()]


def spread_in_few(ends: Sequence[int] | np.ndarray, limit: int) -> list[int]:
    """`limit` rows or fewer, evenly spread inside few shards, which are evenly spread too: each may have to be fetched.

    ends: (shards,), the end of the rows of each shard.
    """
    if len(ends) <= FEW_SHARDS:
        return spread(int(ends[-1]), limit)
    begins = np.append(0, ends[:-1])
    rows = np.concatenate([np.arange(begins[shard], ends[shard]) for shard in spread(len(ends), FEW_SHARDS)])
    return rows[spread(len(rows), limit)].tolist()


def sample(cache: ShardCache, limit: int) -> list[int]:
    """`limit` rows or fewer of a cache, evenly spread; of few shards if they lie in a store."""
    if cache.mirror is None:
        return spread(len(cache), limit)
    return spread_in_few([shard.first_row + shard.rows for shard in cache.plan.shards], limit)


def chunks(rows: list[int], description: str) -> Iterator[list[int]]:
    """A few rows at a time, with a progress bar if it takes long."""
    with progress(None, description, total=len(rows), unit="row", brief=True) as bar:
        for start in range(0, len(rows), ROWS_AT_A_TIME):
            chunk = rows[start : start + ROWS_AT_A_TIME]
            yield chunk
            bar.update(len(chunk))


def read_scores(cache: ShardCache, rows: list[int], spec: TeacherSpec) -> Iterator[Scores]:
    """The scores of `rows`; only the values that the teacher of `spec` and the reference need are read."""
    wanted = {spec.anchor, spec.negative, "dpo", "reference"}
    roles = [role for role in ROLES if role in wanted]
    selection = replace(Selection.everything(cache.plan, roles, (spec.pair,)), names=False)
    for chunk in chunks(rows, "measuring the teacher"):
        yield cache.read_joined(chunk, selection)[1]
