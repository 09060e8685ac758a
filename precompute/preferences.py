"""Whether dpo and reverse prefer what they should, asked of the live models on a few rows: for a cache of one kind of
response, which cannot tell it by itself."""

from collections.abc import Sequence

from precompute.corpus import Corpus, load_pairs
from precompute.models import ModelFolder, load_tokenizer
from precompute.options import BuildOptions
from precompute.plan import sample_rows
from precompute.score import Scorer, batches_by_length
from precompute.tokenize import TokenizedResponse
from shards.directions import Direction, Rewards, directions, implicit_rewards


def sample_directions(options: BuildOptions, corpus: Corpus, reference: ModelFolder, scorer: Scorer) -> list[Direction]:
    """What the models prefer in the rows that the threshold is set on; nothing where the data have no pairs."""
    if not corpus.has_pairs:
        return []
    rows = load_pairs(
        options.sources,
        {row.pair_id for row in sample_rows(corpus.responses, options.sample_rows)},
        tokenizer=load_tokenizer(reference, trust_remote_code=options.trust_remote_code),
        # no longer than what the models were found to have room for
        max_length=max(len(row.input_ids) for row in corpus.responses),
    )
    return directions(_rewards(rows, scorer, options.batch_tokens))


def _rewards(rows: Sequence[TokenizedResponse], scorer: Scorer, batch_tokens: int) -> Rewards:
    rewards: Rewards = {}
    batches = [[rows[i] for i in batch] for batch in batches_by_length(rows, batch_tokens)]
    for batch, found in zip(batches, scorer.next_logprobs(batches), strict=True):
        for row, next_logprob in zip(batch, found, strict=True):
            rewards[row.pair_id, row.chosen] = implicit_rewards(next_logprob)
    return rewards
