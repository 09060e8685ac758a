"""Scores, writes and reads back the shards of one process of a build."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from precompute.feeding.stages import Times
from precompute.feeding.writers import Writers
from precompute.scoring.packing import batches_by_length
from precompute.scoring.score import Batch, Scorer
from precompute.scoring.support import SupportRule
from precompute.tokens.tokenized import TokenizedResponse
from shards.format.finishing import Findings
from shards.format.plan import Plan
from shards.format.scores import Response, Scores
from shards.format.writer import write_shard
from shards.places.out import Out
from shards.progress import progress

READ_BEHIND = 8
"""Shards of an earlier run that are read back behind each that is written: the writers must not fall far behind."""


class _Task(NamedTuple):
    """A shard to score."""

    number: int
    rows: Sequence[TokenizedResponse]


@dataclass(kw_only=True)
class ShardWork:
    """What one process does for a cache.

    todo      numbers of those that this one scores and writes
    unread    of those that an earlier run wrote, and that this one reads back
    writers   most threads that write; so many shards, and the one that is scored, are in memory at a time
    """

    place: Out
    plan: Plan
    rows: Sequence[TokenizedResponse]
    scorer: Scorer
    rule: SupportRule
    batch_tokens: int
    todo: Sequence[int]
    unread: deque[int]
    writers: int = 1
    findings: Findings = field(init=False)

    def __post_init__(self) -> None:
        self.findings = Findings.nothing(self.plan)

    def run(self, *, show: bool) -> tuple[Findings, Times]:
        """Do it, with a bar in response tokens. Shards are written and read back while others are scored."""
        stages = self.scorer.stages
        stages.begin()
        total = sum(self.plan.shards[number].positions for number in self.todo)
        bar = progress(None, "scoring", total=total, unit="tok", disable=not show)
        with bar, Writers(self.writers, self.findings.merge, stages) as writers:
            for task, scores in self._scored(bar, writers.check):
                responses = [row.with_scores(scores[i]) for i, row in enumerate(task.rows)]
                writers.submit(partial(self._write, task.number, responses))
        times = stages.end()
        for number in progress(self.unread, "checking", unit="shard", disable=not (show and self.unread)):
            self._read_back(self.findings, number)
        self.place.settle()
        return self.findings, times

    def rows_of(self, number: int) -> Sequence[TokenizedResponse]:
        """The rows of a shard."""
        shard = self.plan.shards[number]
        return self.rows[shard.first_row : shard.first_row + shard.rows]

    def _scored(self, bar: Any, check: Callable[[], None]) -> Iterator[tuple[_Task, dict[int, Scores]]]:
        """The scores of each shard's rows. A shard is begun before the last scores of the one before are read, unless
        the models are moved to the device in turn, once for every shard. check: called after each batch."""
        for numbers in [[number] for number in self.todo] if self.scorer.one_at_a_time else [self.todo]:
            begun: deque[tuple[_Task, Sequence[int]]] = deque()
            scores: dict[int, Scores] = {}
            for found in self.scorer.score(self._batches(numbers, begun), self.rule):
                task, batch = begun.popleft()
                scores |= zip(batch, found, strict=True)
                bar.update(sum(part.num_positions for part in found))
                check()
                if len(scores) == len(task.rows):
                    yield task, scores
                    scores = {}

    def _batches(self, numbers: Sequence[int], begun: deque[tuple[_Task, Sequence[int]]]) -> Iterator[Batch]:
        """The batches of these shards; what each is a part of goes to the end of `begun`."""
        for number in numbers:
            rows, scorer = self.rows_of(number), self.scorer
            packing = {"share_prompts": scorer.share_prompts, "padding_free": scorer.padding_free}
            for batch in batches_by_length(rows, self.batch_tokens, **packing):
                begun.append((_Task(number, rows), batch))
                yield [rows[i] for i in batch]

    def _write(self, number: int, responses: Sequence[Response]) -> Findings:
        """Write a shard and read it back, and some of an earlier run. On any thread."""
        found = Findings.nothing(self.plan)
        write_shard(self.place.folder, self.plan.shards[number], self.plan, responses)
        found.read_back(self.place.folder, self.plan, number)
        self.place.publish(self.plan.shards[number].file, drop=True)
        for _ in range(READ_BEHIND):
            earlier = self._next_unread()
            if earlier is None:
                break
            self._read_back(found, earlier)
        return found

    def _read_back(self, found: Findings, number: int) -> None:
        """Read a shard of an earlier run."""
        with self.place.brought(self.plan.shards[number].file) as path:
            found.read_back(path.parent, self.plan, number, earlier=True)

    def _next_unread(self) -> int | None:
        """The number of a shard of an earlier run that nobody has read back; None if none are left. On any thread."""
        with contextlib.suppress(IndexError):
            return self.unread.popleft()
        return None
