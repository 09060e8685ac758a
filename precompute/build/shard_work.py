"""Scores, writes and reads back the shards of one process of a build."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

from precompute.scoring.packing import batches_by_length
from precompute.scoring.score import Scorer
from precompute.scoring.support import SupportRule
from precompute.tokens.tokenized import TokenizedResponse
from shards.format.finishing import Findings
from shards.format.plan import Plan, ShardPlan
from shards.format.scores import Response, Scores
from shards.format.writer import write_shard

READ_BEHIND = 8
"""Shards of an earlier run that are read back behind each that is written: the writer must not fall far behind."""


@dataclass(kw_only=True)
class ShardWork:
    """What one process does for a cache.

    left      shards that are not there yet, of all processes
    todo      numbers of those that this one scores and writes
    unread    of those that an earlier run wrote, and that this one reads back
    """

    out: Path
    plan: Plan
    rows: Sequence[TokenizedResponse]
    scorer: Scorer
    rule: SupportRule
    batch_tokens: int
    left: Sequence[ShardPlan]
    todo: Sequence[int]
    unread: deque[int]
    findings: Findings = field(init=False)

    def __post_init__(self) -> None:
        self.findings = Findings.nothing(self.plan)

    def run(self, *, show: bool) -> Findings:
        """Do it, with a bar in response tokens. A shard is written and read back while the next one is scored."""
        total = sum(self.plan.shards[number].positions for number in self.todo)
        bar = tqdm(total=total, unit="tok", desc="scoring", smoothing=0.05, disable=not show)
        with bar, ThreadPoolExecutor(max_workers=1) as writer:
            writing: Future[None] | None = None
            for number in self.todo:
                responses = self._score(number, bar)
                if writing is not None:
                    writing.result()  # two shards in memory at most, and an error is seen
                writing = writer.submit(self._write, number, responses)
            if writing is not None:
                writing.result()
        for number in tqdm(self.unread, unit="shard", desc="checking", disable=not (show and self.unread)):
            self.findings.read_back(self.out, self.plan, number)
        return self.findings

    def _score(self, number: int, bar: tqdm) -> list[Response]:
        shard = self.plan.shards[number]
        rows = self.rows[shard.first_row : shard.first_row + shard.rows]
        order = batches_by_length(rows, self.batch_tokens, share_prompts=self.scorer.share_prompts)
        batches = self.scorer.score([[rows[i] for i in batch] for batch in order], self.rule)
        scores: dict[int, Scores] = {}
        for batch, found in zip(order, batches, strict=True):
            scores |= zip(batch, found, strict=True)
            bar.update(sum(scores[i].num_positions for i in batch))
        return [row.with_scores(scores[i]) for i, row in enumerate(rows)]

    def _write(self, number: int, responses: Sequence[Response]) -> None:
        write_shard(self.out, self.plan.shards[number], self.plan, responses)
        self.findings.read_back(self.out, self.plan, number)
        for _ in range(min(READ_BEHIND, len(self.unread))):
            self.findings.read_back(self.out, self.plan, self.unread.popleft())
