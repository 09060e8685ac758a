"""Measures on a few rows how large the batches of a build may be, and how fast it will go."""

import time
from collections.abc import Sequence

import numpy as np

from precompute.feeding.budget import PROBE_TOKENS, Memory, fitting_tokens
from precompute.scoring.packing import batches_by_length
from precompute.scoring.score import Scorer
from precompute.scoring.support import SupportRule
from precompute.tokens.corpus import Corpus
from precompute.tokens.tokenized import TokenizedResponse
from shards.progress import progress
from shards.spread import spread

PASSES = 2
"""Of which the better one counts; the first one finds nothing in the caches of the processor."""


def measured_batch_tokens(scorer: Scorer, corpus: Corpus, rule: SupportRule, memory: Memory) -> int:
    """The padded tokens of a batch that the device's memory has room for. Raises OptionError if a row has none."""
    order = np.argsort(-corpus.facts.index.num_tokens, kind="stable")[: max(2, PROBE_TOKENS // corpus.facts.longest)]
    rows = [corpus.responses[i] for i in order.tolist()]

    def score(batch: Sequence[TokenizedResponse]) -> None:
        for _ in scorer.score([batch], rule):
            pass

    return fitting_tokens(rows, len(rows[0].input_ids), score, memory)


def tokens_per_second(
    scorer: Scorer, responses: Sequence[TokenizedResponse], rule: SupportRule, batch_tokens: int
) -> float | None:
    """Response tokens a second: the better of PASSES passes over a batch of typical rows. For the plan's estimate only.

    None if the models are moved to the device in turn: the progress bar shows the cost after the first shard.
    """
    if scorer.one_at_a_time:
        return None
    rows = [responses[i] for i in spread(len(responses), 16)]
    if scorer.share_prompts:
        rows = [row for i in spread(len(responses), 8) for row in _with_partner(responses, i)]
    batches = batches_by_length(
        rows, batch_tokens, share_prompts=scorer.share_prompts, padding_free=scorer.padding_free
    )
    batch = [rows[i] for i in batches[len(batches) // 2]]
    seconds = []
    for _ in progress(range(PASSES), "measuring the speed", unit="pass", brief=True):
        start = time.perf_counter()
        positions = sum(scores.num_positions for scores in next(scorer.score([batch], rule)))
        seconds.append(time.perf_counter() - start)
    return positions / min(seconds)


def _with_partner(rows: Sequence[TokenizedResponse], i: int) -> list[TokenizedResponse]:
    """The responses of a row's pair, which stand next to each other."""
    near = rows[max(i - 1, 0) : i + 2]
    return [row for row in near if row.pair_id == rows[i].pair_id]
