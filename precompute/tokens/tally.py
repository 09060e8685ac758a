"""Counts facts about tokenised rows while they are appended, so that no row is read again for them."""

import hashlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from precompute.tokens.tokenized import Row, SharedPrompts, TokenizedResponse
from shards.format.index import RowIndex

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Facts:
    """Facts about tokenised responses, in order.

    tokens_sha256    over the token ids and masks: the tokenizer's output
    tokens, longest  number of tokens of all rows, and of the longest row; prompt and response
    index            pair, preference and lengths of every row; 17 bytes a row
    truncated, prompt_not_prefix  responses that were cut; those whose prompt tokenises differently without them
    pairs            rows of data with both responses here
    saved_tokens, longest_pair    of neighbours that share a prompt (`tokenized.SharedPrompts`)
    """

    tokens_sha256: str
    tokens: int
    longest: int
    index: RowIndex
    truncated: int
    prompt_not_prefix: int
    pairs: int
    saved_tokens: int
    longest_pair: tuple[Row, Row] | None


class Tally:
    """Counts rows as they are added; `facts` is the result."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._pair_ids, self._chosen = array("q"), array("b")
        self._num_tokens, self._num_positions = array("i"), array("i")
        self._tokens = self._longest = self._truncated = self._prompt_not_prefix = self._pairs = 0
        self._shared = SharedPrompts()
        self._last_pair_id: int | None = None

    def add(self, row: TokenizedResponse) -> None:
        self._digest.update(np.ascontiguousarray(row.input_ids, "<i4").data)
        self._digest.update(np.ascontiguousarray(row.loss_mask).data)
        self._pair_ids.append(row.pair_id)
        self._chosen.append(row.chosen)
        self._num_tokens.append(len(row.input_ids))
        self._num_positions.append(int(np.count_nonzero(row.loss_mask)))
        self._tokens += len(row.input_ids)
        self._longest = max(self._longest, len(row.input_ids))
        self._truncated += row.truncated
        self._prompt_not_prefix += not row.prompt_is_prefix
        self._pairs += row.pair_id == self._last_pair_id
        self._last_pair_id = row.pair_id
        self._shared.add(row)

    @property
    def facts(self) -> Facts:
        return Facts(
            tokens_sha256=self._digest.hexdigest(),
            tokens=self._tokens,
            longest=self._longest,
            index=RowIndex(
                pair_id=np.asarray(self._pair_ids),
                chosen=np.asarray(self._chosen).view(bool),
                num_tokens=np.asarray(self._num_tokens),
                num_positions=np.asarray(self._num_positions),
            ),
            truncated=self._truncated,
            prompt_not_prefix=self._prompt_not_prefix,
            pairs=self._pairs,
            saved_tokens=self._shared.saved_tokens,
            longest_pair=self._shared.longest,
        )


def facts_of(rows: Iterable[TokenizedResponse]) -> Facts:
    tally = Tally()
    for row in rows:
        tally.add(row)
    return tally.facts


class SpreadSample(Generic[Item]):
    """Every n-th of the offered items, with n doubling over time: from `count` to under twice `count` items once enough
    were offered; nothing for a count of 0."""

    def __init__(self, count: int) -> None:
        self.kept: list[Item] = []
        self._count, self._stride, self._offered = count, 1, 0

    def offer(self, item: Item) -> None:
        if self._count and self._offered % self._stride == 0:
            self.kept.append(item)
            if len(self.kept) == 2 * self._count:
                self.kept = self.kept[::2]
                self._stride *= 2
        self._offered += 1
