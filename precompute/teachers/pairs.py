"""Preference pairs in the form of TRL's DPOTrainer: the build's own token ids, both responses of every pair."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import datasets

from precompute.tokens.corpus import Corpus
from precompute.tokens.tokenized import TokenizedResponse
from shards.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenizedPair:
    """A chosen and a rejected response after one prompt: both start at the same token of the same prompt ids."""

    chosen: TokenizedResponse
    rejected: TokenizedResponse


def whole_pairs(corpus: Corpus, data: str) -> list[TokenizedPair]:
    """The rows with both responses, in order. Raises DataError if there are none."""
    by_row = (list(responses) for _, responses in groupby(corpus.responses, key=lambda response: response.pair_id))
    pairs = [TokenizedPair(chosen=both[0], rejected=both[1]) for both in by_row if len(both) == 2]
    if not pairs:
        raise DataError(f"{data}: expected a row with both responses, found none among {corpus.rows_read}")
    return pairs


def dpo_dataset(pairs: Sequence[TokenizedPair], *, swap: bool) -> datasets.Dataset:
    """The columns that DPOTrainer expects: prompt_ids, chosen_ids, rejected_ids. swap: rejected is preferred."""
    starts = [pair.chosen.response_start for pair in pairs]
    assert starts == [pair.rejected.response_start for pair in pairs]
    wins = [pair.rejected if swap else pair.chosen for pair in pairs]
    loses = [pair.chosen if swap else pair.rejected for pair in pairs]
    return datasets.Dataset.from_dict(
        {
            "prompt_ids": [win.input_ids[:start] for win, start in zip(wins, starts, strict=True)],
            "chosen_ids": [win.input_ids[start:] for win, start in zip(wins, starts, strict=True)],
            "rejected_ids": [lose.input_ids[start:] for lose, start in zip(loses, starts, strict=True)],
        }
    )
