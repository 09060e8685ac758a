"""What a run says and leaves in its folder when it stops at a bad step: the step's samples, the worst first."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shards.cli.outside import naming_saves
from shards.errors import AlignDistilError
from shards.format.encoding.selection import Selection
from shards.format.schema import SAMPLE_ID
from shards.format.writer import write_json
from student.data.order import FILLS
from student.data.responses import CachedResponses
from student.log.files import STOPPED_FILE, checkpoints_of

NAMED = 16
"""The most samples that are named in the line; the file has all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A row of a cache, and its sample_id; None if it cannot be read."""

    cache: str
    row: int
    sample_id: str | None

    def __str__(self) -> str:
        return f"{self.row}" if self.sample_id is None else f"{self.row} ({self.sample_id})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A micro-batch of the step: its rank, its part of the loss, and its samples."""

    rank: int
    loss: float | str | None
    samples: list[Sample]

    @property
    def badness(self) -> float:
        return self.loss if isinstance(self.loss, float) else math.inf


def stopped_text(
    data: CachedResponses, out: Path, fault: dict[str, Any], gathered: Sequence[Sequence[tuple[list[int], float]]]
) -> str:
    """Write the file, and return the end of the line: what was kept, and the samples of the step.

    fault      step, reason and figures, for the file
    gathered   for each rank the micro-batches of the step: rows of `data`, and loss
    """
    parts = [
        Part(rank=rank, loss=plain(loss), samples=samples_of(data, [row for row in rows if row != FILLS]))
        for rank, batches in enumerate(gathered)
        for rows, loss in batches
    ]
    parts.sort(key=lambda part: part.badness, reverse=True)
    with naming_saves(str(out)):
        write_json(out, STOPPED_FILE, fault | {"micro_batches": list(map(asdict, parts))})
    names = " and ".join(folder.name for folder in reversed(checkpoints_of(out)[:2]))
    samples = [sample for part in parts for sample in part.samples]
    more = f" and {len(samples) - NAMED:,} more" if len(samples) > NAMED else ""
    since = f"kept {names}, and saved nothing since" if names else "saved nothing"
    return (
        f"{since}; its samples, the largest loss first "
        f"({out / STOPPED_FILE} has all): rows {', '.join(map(str, samples[:NAMED]))}{more}; look at them: "
        f"python -m shards.inspect {samples[0].cache} --row {samples[0].row}"
    )


def samples_of(data: CachedResponses, rows: Sequence[int]) -> list[Sample]:
    """The samples of rows of a data set."""
    if not rows:
        return []
    return [
        Sample(cache=data.caches[cache].name, row=row, sample_id=_sample_id(data, cache, row))
        for cache, row in zip(*(column.tolist() for column in data.places(rows)), strict=True)
    ]


def _sample_id(data: CachedResponses, cache: int, row: int) -> str | None:
    """None if the shard cannot be read any more: the line about the step matters more."""
    found = data.caches[cache]
    names = Selection(roles=(), tails=(), distances=(), pairs=(), next_tokens=False, names=True)
    try:
        return str(found.read_columns([row], names)[0][SAMPLE_ID])
    except AlignDistilError:
        return None


def plain(value: float | None) -> float | str | None:
    """A number as JSON can have it."""
    return value if value is None or math.isfinite(value) else str(value)
