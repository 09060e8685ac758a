"""Makes the plan of a build: sets the support's threshold on sample rows, and cuts the rows into shards."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from precompute.build.options import BuildOptions
from precompute.scoring.packing import batched
from precompute.scoring.score import Scorer
from precompute.scoring.support import SupportRule, find_threshold
from precompute.tokens.corpus import Corpus
from precompute.tokens.tokenized import TokenizedResponse
from shards.format.plan import Plan, ShardPlan, shard_file
from shards.progress import progress
from shards.spread import spread

THRESHOLD_POSITIONS = 16_384
"""Most positions of the sample that are ranked; at 2,048 tokens a position they take 128 MiB."""


def make_plan(
    options: BuildOptions,
    asked: Mapping[str, Any],
    corpus: Corpus,
    vocabulary_size: int,
    log_threshold: float | None,
    index_sha256: str,
) -> Plan:
    return Plan(
        identity=asked,
        roles=tuple(options.model_names),
        pairs=options.served_pairs,
        nodes=options.nodes,
        vocabulary_size=vocabulary_size,
        values=options.values,
        rows_per_batch=options.rows_per_batch,
        log_threshold=log_threshold,
        skipped=dict(sorted(corpus.skipped.items())),
        truncated=corpus.truncated,
        prompt_not_prefix=corpus.prompt_not_prefix,
        index_sha256=index_sha256,
        shards=tuple(plan_shards(corpus.facts.index.num_positions, options.tokens_per_shard)),
    )


def plan_shards(positions: Sequence[int] | np.ndarray, tokens_per_shard: int) -> list[ShardPlan]:
    """Cut the rows, in order, after every `tokens_per_shard` response tokens (a row is never cut)."""
    ends = np.cumsum(positions, dtype=np.int64)
    shards: list[ShardPlan] = []
    first = before = 0
    while first < len(ends):
        last = min(int(np.searchsorted(ends, before + tokens_per_shard)), len(ends) - 1)
        file, here = shard_file(len(shards)), int(ends[last]) - before
        shards.append(ShardPlan(file=file, first_row=first, rows=last + 1 - first, positions=here))
        first, before = last + 1, int(ends[last])
    return shards


def log_threshold(scorer: Scorer, rows: Sequence[TokenizedResponse], options: BuildOptions, highest: int) -> float:
    """The threshold that keeps top_k tokens on average in a sample of rows; of many positions every n-th is used."""
    sample = [rows[i] for i in spread(len(rows), options.sample_rows)]
    total = sum(int(row.loss_mask.sum()) for row in sample)
    stride = -(-total // THRESHOLD_POSITIONS)
    ranked: list[np.ndarray] = []
    with progress(None, f"setting the threshold on {len(sample)} rows", total=total, unit="tok") as bar:
        for scores_NK in scorer.ranked_scores(batched(sample, options.tokens_per_batch), highest):
            ranked.append(scores_NK[::stride].copy())
            bar.update(len(scores_NK))
    return find_threshold(np.concatenate(ranked), top_k=options.top_k, lowest=options.min_top_k)


def support_rule(options: BuildOptions, vocabulary_size: int, threshold: float | None) -> SupportRule:
    """The rule that keeps tokens; a fixed support has no threshold."""
    if options.support == "fixed":
        return SupportRule(lowest=options.top_k, highest=options.top_k, log_threshold=None)
    highest = min(options.max_top_k, vocabulary_size)
    return SupportRule(lowest=min(options.min_top_k, highest), highest=highest, log_threshold=threshold)
