"""Rows of a micro-batch as the input of a body: padded, or as one row without padding, which some bodies cannot take.

Dimensions: B rows, T tokens, N response positions, H hidden size.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from shards.errors import ModelError, NonFiniteLogits, first_line
from shards.format.scores import Tokens
from shards.modelfiles.head import body_of


def padded(rows: Sequence[Tokens], pad_token_id: int) -> dict[str, Any]:
    """input_ids, attention_mask (B, T), right-padded; position (N,): b * T + t before each response token."""
    longest = max(len(row.input_ids) for row in rows)
    input_ids_BT = np.full((len(rows), longest), pad_token_id, dtype=np.int64)
    attention_mask_BT = np.zeros_like(input_ids_BT)
    for number, row in enumerate(rows):
        input_ids_BT[number, : len(row.input_ids)] = row.input_ids
        attention_mask_BT[number, : len(row.input_ids)] = 1
    return {
        "input_ids": torch.from_numpy(input_ids_BT),
        "attention_mask": torch.from_numpy(attention_mask_BT),
        "position": _positions(rows, [number * longest for number in range(len(rows))]),
    }


def in_one(rows: Sequence[Tokens]) -> dict[str, Any]:
    """input_ids (1, T): all rows after each other; position (N,): t before each response token; and `packed`.

    packed: position_ids (1, T), which begin again in each row; row_ends (B + 1,) int32, the first is 0; and
    longest_row, a number of the host. Without a mask a body takes the rows' limits from these.
    """
    lengths = [len(row.input_ids) for row in rows]
    ends = np.cumsum([0, *lengths])
    return {
        "input_ids": torch.from_numpy(np.concatenate([row.input_ids for row in rows]).astype(np.int64))[None],
        "packed": {
            "position_ids": torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None],
            "row_ends": torch.from_numpy(ends.astype(np.int32)),
            "longest_row": max(lengths),
        },
        "position": _positions(rows, ends[:-1].tolist()),
    }


def _positions(rows: Sequence[Tokens], starts: Sequence[int]) -> torch.Tensor:
    before = [start + np.flatnonzero(row.loss_mask) - 1 for start, row in zip(starts, rows, strict=True)]
    return torch.from_numpy(np.concatenate(before))


def response_states(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position: torch.Tensor,
    packed: dict[str, Any] | None = None,
) -> torch.Tensor:
    """Last hidden states of the body at the response positions, (N, H), from the result of `padded` or `in_one`."""
    given = {} if packed is None else _packed_inputs(packed, str(model.config._attn_implementation))
    hidden_BTH = body_of(model, "student")(
        input_ids=input_ids, attention_mask=attention_mask, **given, use_cache=False
    )[0]
    return hidden_BTH.flatten(0, 1)[position]


def _packed_inputs(packed: dict[str, Any], attention: str) -> dict[str, Any]:
    """Flash attention is told the rows' lengths; else it waits for the device in every layer to learn them."""
    found = {"position_ids": packed["position_ids"]}
    if attention.startswith("flash_attention"):
        found |= dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), packed["row_ends"])
        found |= dict.fromkeys(("max_length_q", "max_length_k"), packed["longest_row"])
    return found


@torch.no_grad()
def require_padding_free(model: Any, rows: Sequence[Tokens], tolerance: float) -> None:
    """Run rows as one and padded. Raises ModelError if the hidden states differ by more than `tolerance`, relative to
    their length: for layers that know no rows inside of a row, such as state-space layers.
    """
    if len(rows) == 1:
        rows = [*rows, *rows]
    training = model.training
    model.eval()
    try:
        apart_NH = _states(model, padded(rows, 0)).float()
        if not bool(apart_NH.isfinite().all()):
            raise NonFiniteLogits("student: expected finite hidden states of cached rows, got others")
        together_NH = _states_in_one(model, rows).float()
    finally:
        model.train(training)
    off = float(((together_NH - apart_NH).norm(dim=-1) / apart_NH.norm(dim=-1)).max())
    if not off <= tolerance:
        raise ModelError(
            f"student: expected the same hidden states with rows in one, got some {off:.1%} off; leave "
            "--padding_free out"
        )


def _states(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    there = {name: _moved(value, model.device) for name, value in inputs.items()}
    return response_states(model, **{"attention_mask": None} | there)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: _moved(inner, device) for name, inner in value.items()}
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _states_in_one(model: Any, rows: Sequence[Tokens]) -> torch.Tensor:
    try:
        return _states(model, in_one(rows))
    except (RuntimeError, TypeError, ValueError) as exc:
        raise ModelError(
            f"student: expected a body that takes positions of one's own, got {first_line(exc)}; leave "
            "--padding_free out"
        ) from exc
