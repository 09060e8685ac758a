"""Counts how tokens and words are rewarded, and ranks them. Pure.

Dimensions: N response positions.
"""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from shards.survey.words import Word

By = Literal["total", "mean"]
TOP = 20
MIN_COUNT = 5
"""How often a token or a word must occur to be listed: a mean over fewer says little."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """A token or a word, how often it occurs, and the sum of its rewards. token_id: None for a word."""

    text: str
    count: int
    total: float
    token_id: int | None = None

    @property
    def mean(self) -> float:
        return self.total / self.count


class Tops(NamedTuple):
    """The most rewarded and the most punished, the extreme ones first. None of them has a reward of the other sign."""

    rewarded: list[Ranked]
    punished: list[Ranked]


class TokenCounts:
    """Of every token of a vocabulary: how often it occurs, and the sum of its rewards. Memory: 16 bytes a token."""

    def __init__(self, vocabulary_size: int) -> None:
        self.counts = np.zeros(vocabulary_size, dtype=np.int64)
        self.totals = np.zeros(vocabulary_size)

    def add(self, token_ids_N: np.ndarray, reward_N: np.ndarray) -> None:
        size = len(self.counts)
        self.counts += np.bincount(token_ids_N, minlength=size)
        self.totals += np.bincount(token_ids_N, reward_N, minlength=size)

    def __iter__(self) -> Iterator[Ranked]:
        """The tokens that occur, with ids for texts."""
        for token_id in np.flatnonzero(self.counts).tolist():
            yield Ranked(str(token_id), int(self.counts[token_id]), float(self.totals[token_id]), token_id)


class WordCounts:
    """Of every word: how often it occurs, and the sum of the rewards of its tokens. Memory grows with the words."""

    def __init__(self) -> None:
        self._found: dict[str, list[float]] = {}

    def add(self, words: Iterable[Word], reward_T: np.ndarray) -> None:
        """The words of one row; reward_T: 0 at tokens that are not distilled."""
        until = [0.0, *np.cumsum(reward_T).tolist()]
        for text, begin, end in words:
            entry = self._found.setdefault(text, [0, 0.0])
            entry[0] += 1
            entry[1] += until[end] - until[begin]

    def __iter__(self) -> Iterator[Ranked]:
        return (Ranked(text, int(count), total) for text, (count, total) in self._found.items())


def tops(entries: Iterable[Ranked], limit: int, by: By, min_count: int = MIN_COUNT) -> Tops:
    """The `limit` most rewarded and most punished that occur at least min_count times; ties by text."""
    listed = [entry for entry in entries if entry.count >= min_count]

    def value(entry: Ranked) -> float:
        return entry.total if by == "total" else entry.mean

    rewarded = heapq.nsmallest(limit, (e for e in listed if value(e) > 0), key=lambda e: (-value(e), e.text))
    punished = heapq.nsmallest(limit, (e for e in listed if value(e) < 0), key=lambda e: (value(e), e.text))
    return Tops(rewarded, punished)
