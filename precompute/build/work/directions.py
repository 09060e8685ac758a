"""Checks on a few rows that dpo prefers the chosen responses and reverse the rejected ones."""

from collections.abc import Sequence
from dataclasses import replace

from precompute.scoring.packing import batched
from precompute.scoring.score import Scorer
from precompute.tokens.corpus import Corpus
from precompute.tokens.tokenized import TokenizedResponse
from shards.errors import NonFiniteLogits
from shards.preferences.directions import Direction, Rewards, directions, implicit_rewards
from shards.progress import progress
from shards.spread import spread


def sample_directions(corpus: Corpus, scorer: Scorer, *, sample: int, batch_tokens: int) -> list[Direction]:
    """What the models prefer in `sample` pairs, spread evenly over the data. Empty if the data have no pairs."""
    pairs = [corpus.sampled_pairs[i : i + 2] for i in range(0, len(corpus.sampled_pairs), 2)]
    rows = [row for i in spread(len(pairs), sample) for row in pairs[i]]
    # the models were checked to have room for the longest row
    cut = [_cut(row, corpus.facts.longest) for row in rows]
    try:
        return directions(_rewards([row for row in cut if row.loss_mask.any()], scorer, batch_tokens))
    except NonFiniteLogits:
        return []  # scoring will say at which sample and position, and keep the shards before it


def _cut(row: TokenizedResponse, longest: int) -> TokenizedResponse:
    return replace(row, input_ids=row.input_ids[:longest], loss_mask=row.loss_mask[:longest])


def _rewards(rows: Sequence[TokenizedResponse], scorer: Scorer, batch_tokens: int) -> Rewards:
    rewards: Rewards = {}
    batches = batched(rows, batch_tokens)
    scored = zip(batches, scorer.next_logprobs(batches), strict=True)
    bar = progress(scored, "comparing preferences", total=len(batches), unit="batch", brief=True)
    for batch, found in bar:
        for row, next_logprob in zip(batch, found, strict=True):
            rewards[row.pair_id, row.chosen] = implicit_rewards(next_logprob)
    return rewards
