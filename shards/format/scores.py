"""Scores and Response: the values that `precompute` computes, a shard stores and `student` reads.

Dimensions: N response positions, M kept tokens over all positions (position-major), J strength nodes, T input tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from shards.format.schema import Pair, Role

Array = np.ndarray

LOGPROB_TOLERANCE = 1e-5
"""How far a float32 log-prob may exceed 0, in nats."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Scores:
    """Log-probs of three models on a sparse support, and sums over the rest. All log-probs in nats.

    support_count       (N,)   K_t, kept tokens at each position, at least 1
    support_ids         (M,)   kept token ids, ascending inside a position; M = sum of support_count
    logprobs            role -> (M,)    on the kept ids
    next_logprob        role -> (N,)    of the actual next token, kept or not
    tail_logprob        role -> (N,)    log of the mass outside the support; -inf if nothing is outside
    l1_distance         negative -> (N,)   D_t = sum over the full vocabulary of |p_dpo - p_negative|
    tail_logpartition   pair -> (N, J - 1)  log sum over v outside the support of exp(teacher logit) at the nodes
                        w_1 .. w_(J-1); at w_0 = 0 it is the anchor's tail_logprob; -inf if nothing is outside
    """

    support_count: Array
    support_ids: Array
    logprobs: Mapping[Role, Array]
    next_logprob: Mapping[Role, Array]
    tail_logprob: Mapping[Role, Array]
    l1_distance: Mapping[Role, Array]
    tail_logpartition: Mapping[Pair, Array]

    def __repr__(self) -> str:
        return f"Scores({self.num_positions:,} positions, {self.num_entries:,} kept tokens; {', '.join(self.logprobs)})"

    @property
    def num_positions(self) -> int:
        return len(self.support_count)

    @property
    def num_entries(self) -> int:
        return len(self.support_ids)

    def slice(self, start: int, stop: int) -> "Scores":
        """The positions start <= t < stop."""
        first, last = (int(self.support_count[:end].sum()) for end in (start, stop))
        return _part(self, slice(start, stop), slice(first, last))

    def split(self, size_R: Sequence[int]) -> "list[Scores]":
        """The first positions, the next ones, ..., so many each; all in all N."""
        ends = np.cumsum([0, *size_R])
        entries = np.append(0, np.cumsum(self.support_count, dtype=np.int64))[ends]
        return [
            _part(self, slice(*ends_), slice(*entries_))
            for ends_, entries_ in zip(pairwise(ends.tolist()), pairwise(entries.tolist()), strict=True)
        ]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Response:
    """One row of a cache: a tokenised response and the scores of its N = sum(loss_mask) positions, in order.

    input_ids (T,) int32, loss_mask (T,) bool. The n-th position of `scores` predicts the n-th token with a true mask,
    from the hidden state one token earlier.
    """

    sample_id: str
    pair_id: int
    chosen: bool
    response_start: int
    input_ids: Array
    loss_mask: Array
    scores: Scores

    def __repr__(self) -> str:
        return (
            f"Response({self.sample_id!r}, {len(self.input_ids):,} tokens, {self.scores!r}; cache.row(n) has its text)"
        )


class Tokens(NamedTuple):
    """The tokens of a row without its scores: input_ids (T,) int32, loss_mask (T,) bool."""

    input_ids: Array
    loss_mask: Array


def concatenate(parts: Sequence[Scores]) -> Scores:
    """One Scores of all positions of `parts`, in order. All parts must hold the same roles and pairs."""
    assert parts, "nothing to concatenate"
    joined: dict[str, Any] = {f.name: _concatenate([getattr(part, f.name) for part in parts]) for f in fields(Scores)}
    return Scores(**joined)


def segment_starts(count_N: Array) -> Array:
    """Index of the first entry of each position, (N,)."""
    return np.cumsum(count_N) - count_N


def segment_logsumexp(values_M: Array, count_N: Array) -> Array:
    """log sum exp over each position's entries, (N,). Every count must be at least 1."""
    starts_N = segment_starts(count_N)
    peak_N = np.maximum.reduceat(values_M, starts_N)
    return peak_N + np.log(np.add.reduceat(np.exp(values_M - np.repeat(peak_N, count_N)), starts_N))


def _part(scores: Scores, positions: slice, entries: slice) -> Scores:
    parts: dict[str, Any] = {
        f.name: _cut(getattr(scores, f.name), entries if f.name in ("support_ids", "logprobs") else positions)
        for f in fields(Scores)
    }
    return Scores(**parts)


def _cut(value: Array | Mapping, part: slice) -> Array | dict:
    if isinstance(value, Mapping):
        return {key: array[part] for key, array in value.items()}
    return value[part]


def _concatenate(values: Sequence) -> Array | dict:
    if isinstance(values[0], Mapping):
        return {key: np.concatenate([value[key] for value in values]) for key in values[0]}
    return np.concatenate(values)
