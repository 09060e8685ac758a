"""Packs batches: which rows are run together, how they are padded, and where their response tokens are.

Rows are packed one by one, or both responses of a pair after a shared prompt, or all rows of a batch after each other
in one, without padding, where position ids that begin again separate them.

A packed row is [prompt and first response, second response], so the common start of both rows appears once. The second
response has the positions that it would have alone, and a mask hides the first response from it. So its hidden states
are those of the row alone, up to rounding.

Dimensions: B packed rows, T their tokens, N response tokens of the batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch

from precompute.tokens.tokenized import AnyRow, Row, shared_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Right-padded input of a body, and where to read the hidden states of interest.

    input_ids         (B, T) int64; no token sees padding
    attention_mask    (B, T) int64, or, with shared prompts, (B, 1, T, T) bool: which tokens each token sees; None
                      without padding
    position_ids      (B, T) int64; None if positions count from 0
    lengths           of the rows that stand in one, if they do
    places            (N,) int64: b * T + t of the token before each response token, which predicts it, in the batch's
                      order
    next_ids          (N,) int64: the response tokens
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    position_ids: torch.Tensor | None
    lengths: tuple[int, ...] | None = None
    places: torch.Tensor
    next_ids: torch.Tensor

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> "Packed":
        """The same with every tensor moved."""
        there = {f.name: tensor for f in fields(Packed) if isinstance(tensor := getattr(self, f.name), torch.Tensor)}
        moved: dict[str, Any] = {name: move(tensor) for name, tensor in there.items()}
        return replace(self, **moved)


def units(rows: Sequence[Row]) -> list[list[int]]:
    """The rows' indices in order: neighbours that share a prompt together, all others alone."""
    found: list[list[int]] = []
    alone: Row | None = None  # the previous row, if it has no partner yet
    for i, row in enumerate(rows):
        if alone is not None and shared_tokens(alone, row):
            found[-1].append(i)
            alone = None
        else:
            found.append([i])
            alone = row
    return found


def packed_length(rows: Sequence[Row]) -> int:
    """Number of tokens of one row, or of two that share their prompt."""
    shared = shared_tokens(*rows) if len(rows) == 2 else 0
    return sum(len(row.input_ids) for row in rows) - shared


def pack(batch: Sequence[Row], *, share_prompts: bool) -> Packed:
    """The input of a body; share_prompts: put neighbours of one pair after one prompt."""
    groups = [[batch[i] for i in unit] for unit in units(batch)] if share_prompts else [[row] for row in batch]
    ids, positions, own, places = [], [], [], []
    for group in groups:
        # for the second response: it sees the shared part, but nothing between that and its own start
        shared, begin = (shared_tokens(*group), len(group[0].input_ids)) if len(group) == 2 else (0, 0)
        parts = [row.input_ids[shared * i :] for i, row in enumerate(group)]
        ids.append(np.concatenate(parts))
        positions.append(np.concatenate([np.arange(len(part)) + shared * i for i, part in enumerate(parts)]))
        own.append((shared, begin))
        before = [np.flatnonzero(row.loss_mask) - 1 for row in group]
        moved = [at + i * np.where(at < shared, 0, begin - shared) for i, at in enumerate(before)]
        places.append(np.concatenate(moved))
    ids_BT, mask_BT = pad(ids)
    row_N = np.repeat(np.arange(len(groups)), [len(found) for found in places])
    return Packed(
        input_ids=ids_BT,
        attention_mask=_visible(ids_BT.shape[1], own) if share_prompts else mask_BT,
        position_ids=pad(positions)[0] if share_prompts else None,
        places=torch.from_numpy(row_N * ids_BT.shape[1] + np.concatenate(places)),
        next_ids=_next_ids(batch),
    )


def pack_flat(batch: Sequence[Row]) -> Packed:
    """The input of a body without padding: all rows in one, (1, T)."""
    lengths = tuple(len(row.input_ids) for row in batch)
    starts = (0, *accumulate(lengths))
    before = [start + np.flatnonzero(row.loss_mask) - 1 for start, row in zip(starts, batch, strict=False)]
    return Packed(
        input_ids=torch.from_numpy(np.concatenate([row.input_ids for row in batch]).astype(np.int64))[None],
        attention_mask=None,
        position_ids=torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None],
        lengths=lengths,
        places=torch.from_numpy(np.concatenate(before)),
        next_ids=_next_ids(batch),
    )


def _next_ids(batch: Sequence[Row]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([row.input_ids[row.loss_mask] for row in batch]).astype(np.int64))


def places(batch: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """(row in the batch, token in the row) of every response token, (N,) each."""
    tokens = [np.flatnonzero(row.loss_mask) for row in batch]
    return np.repeat(np.arange(len(batch)), [len(found) for found in tokens]), np.concatenate(tokens)


def row_ends(batch: Sequence[Row]) -> Iterator[tuple[int, int]]:
    """For each row, the first of its positions in the batch and the one after its last."""
    return pairwise(np.cumsum([0, *(int(row.loss_mask.sum()) for row in batch)]).tolist())


def batched(rows: Sequence[AnyRow], batch_tokens: int) -> list[list[AnyRow]]:
    """The rows in the batches of `batches_by_length`."""
    return [[rows[i] for i in batch] for batch in batches_by_length(rows, batch_tokens)]


def batches_by_length(
    rows: Sequence[Row], batch_tokens: int, *, share_prompts: bool = False, padding_free: bool = False
) -> list[list[int]]:
    """Indices of `rows` in batches of similar length, longest first, each within the budget of tokens, with padding.

    A row longer than the budget is a batch by itself. share_prompts: neighbours of one pair stay together, and count as
    one packed row.
    """
    together = units(rows) if share_prompts else [[i] for i in range(len(rows))]
    lengths = [packed_length([rows[i] for i in unit]) for unit in together]
    batches: list[list[int]] = []
    longest = filled = 0
    for length, unit in sorted(zip(lengths, together, strict=True), key=lambda item: (-item[0], item[1])):
        if batches and filled + (length if padding_free else longest) <= batch_tokens:
            batches[-1] += unit
        else:
            batches.append(list(unit))
            longest, filled = length, 0
        filled += length if padding_free else longest
    return batches


def padding_share(rows: Sequence[Row], batch_tokens: int, *, share_prompts: bool = False) -> float:
    """The share of padding in the tokens of all batches of these rows."""
    batches = [[rows[i] for i in batch] for batch in batches_by_length(rows, batch_tokens, share_prompts=share_prompts)]
    padded = own = 0
    for batch in batches:
        groups = [[batch[i] for i in unit] for unit in units(batch)] if share_prompts else [[row] for row in batch]
        lengths = [packed_length(group) for group in groups]
        padded, own = padded + max(lengths) * len(lengths), own + sum(lengths)
    return 1 - own / padded


def pad(rows: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded numbers and their mask, (B, T) int64."""
    longest = max(map(len, rows))
    ids_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for i, row in enumerate(rows):
        ids_BT[i, : len(row)] = torch.from_numpy(row.astype(np.int64))
        mask_BT[i, : len(row)] = 1
    return ids_BT, mask_BT


def _visible(length: int, own: Sequence[tuple[int, int]]) -> torch.Tensor:
    """(B, 1, T, T) bool: each token sees itself and all before it, but a second response sees nothing of the first.

    own: for each row (end of the shared part, start of the second response), or (0, 0) without one. Padding comes last,
    so no other token sees it.
    """
    causal_TT = torch.ones(length, length, dtype=torch.bool).tril()
    visible_BTT = causal_TT.repeat(len(own), 1, 1)
    for i, (shared, begin) in enumerate(own):
        visible_BTT[i, begin:, shared:begin] = False
    return visible_BTT[:, None]
