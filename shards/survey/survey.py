"""take_survey: reads a cache once and gives its rewarded and punished tokens and words, and figures of every row."""

from dataclasses import dataclass, replace

import numpy as np

from shards.cache import ShardCache
from shards.cli.trust_text import sampled
from shards.format.schema import Role
from shards.survey.counts import MIN_COUNT, By, TokenCounts, Tops, WordCounts, tops
from shards.survey.reading import Part, blocks_within, read_parts
from shards.survey.rows import RowFigures, row_figures, row_sums
from shards.survey.words import words_of
from shards.token_texts import TokenTexts

POSITIONS = 5_000_000
"""Response tokens that are read of a larger cache, and so a bound on memory and time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a survey found.

    negative, beta   of the contrastive reward: beta (l_dpo - l_negative)
    on               which responses were read, in words
    positions        response tokens that were read
    """

    negative: Role
    beta: float
    on: str
    positions: int
    rows: RowFigures
    token_counts: TokenCounts
    word_counts: WordCounts
    texts: TokenTexts

    def tokens(self, limit: int, by: By = "total", min_count: int = MIN_COUNT) -> Tops:
        """The most rewarded and most punished tokens, with their texts."""
        found = tops(self.token_counts, limit, by, min_count)
        return Tops(*([replace(e, text=self.texts.text(e.token_id or 0)) for e in side] for side in found))

    def words(self, limit: int, by: By = "total", min_count: int = MIN_COUNT) -> Tops:
        """The most rewarded and most punished words (`words_of`); a word's reward is the sum of its tokens'.

        None of a cache without a tokenizer.json: nothing says where its words end.
        """
        return tops(self.word_counts, limit, by, min_count)


def take_survey(
    cache: ShardCache, negative: Role, beta: float, texts: TokenTexts, *, positions: int = POSITIONS
) -> Survey:
    """Survey a cache, or evenly spread rows of one with more response positions than that.

    Memory: a few rows, 16 bytes for every token of the vocabulary, about 70 for every row, and the words.
    Raises CacheDamaged.
    """
    tokens, words, sums = TokenCounts(cache.plan.vocabulary_size), WordCounts(), []
    for part in read_parts(cache, blocks_within(cache, positions)):
        reward_N = part.reward(negative, beta)
        tokens.add(part.token_ids, reward_N)
        sums.append(row_sums(part, negative, reward_N))
        if texts.note is None:  # a vocabulary's spelling has no spaces
            _add_words(words, part, reward_N, texts)
    rows = row_figures(sums, cache.index)
    return Survey(
        negative=negative,
        beta=beta,
        on=sampled(len(rows), len(cache), few_shards=cache.mirror is not None),
        positions=int(rows.length.sum()),
        rows=rows,
        token_counts=tokens,
        word_counts=words,
        texts=texts,
    )


def _add_words(words: WordCounts, part: Part, reward_N: np.ndarray, texts: TokenTexts) -> None:
    reward_T = np.zeros(len(part.input_ids))
    reward_T[part.loss_mask] = reward_N
    for start, end in zip(part.token_starts[:-1].tolist(), part.token_starts[1:].tolist(), strict=True):
        ids = part.input_ids[start:end].tolist()
        mask = part.loss_mask[start:end].tolist()
        counted = [wanted and not texts.special(token_id) for token_id, wanted in zip(ids, mask, strict=True)]
        words.add(words_of(texts.pieces(ids), counted), reward_T[start:end])
