"""A fixed, evenly spread sample of a cache's rows, for numbers that do not need all of them."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from tqdm.auto import tqdm

from shards.reader import ShardCache
from shards.schema import ROLES
from shards.scores import Scores
from shards.selection import Selection
from shards.teacher import TeacherSpec

ROWS_AT_A_TIME = 16
QUIET_SECONDS = 2.0
"""A progress bar appears only after so long."""


def spread(total: int, limit: int) -> list[int]:
    """All of `total` rows, or `limit` of them at equal distances, the first and the last among them."""
    if total <= limit:
        return list(range(total))
    return [int(row) for row in np.linspace(0, total - 1, limit).round()]


def chunks(rows: list[int], description: str) -> Iterator[list[int]]:
    """A few rows at a time, with a progress bar where it takes long."""
    with tqdm(total=len(rows), unit="row", desc=description, delay=QUIET_SECONDS, leave=False) as bar:
        for start in range(0, len(rows), ROWS_AT_A_TIME):
            chunk = rows[start : start + ROWS_AT_A_TIME]
            yield chunk
            bar.update(len(chunk))


def read_scores(cache: ShardCache, rows: list[int], spec: TeacherSpec) -> Iterator[Scores]:
    """The scores of `rows`, of which only what the teacher of `spec` and the reference need is read."""
    wanted = {spec.anchor, spec.negative, "dpo", "reference"}
    roles = [role for role in ROLES if role in wanted]
    selection = replace(Selection.everything(cache.plan, roles, (spec.pair,)), names=False)
    for chunk in chunks(rows, "measuring the teacher"):
        yield cache.read_joined(chunk, selection)[1]
