"""Finds where a response starts behind its prompt, and which of its tokens are trained on. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from precompute.data.layouts import ResponseKind
from precompute.tokens.encode import Encoded
from precompute.tokens.tokenized import Outcome, SkippedResponse, TokenizedResponse
from shards.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Span:
    """A tokenised response behind its prompt.

    ids (T,): prompt and response. start: the first response token. trains (T,) bool: tokens to train on.
    prompt_is_prefix: the prompt tokenised alone gives the first `start` of the ids.
    """

    ids: np.ndarray
    start: int
    trains: np.ndarray
    prompt_is_prefix: bool


def marked_span(chat: Encoded, where: str) -> Span:
    """The span of a whole chat in which every assistant turn is trained on."""
    assert chat.assistant is not None, "was asked for"
    if not chat.assistant.any():
        raise DataError(f"{where}: expected assistant tokens inside the template's generation block, got none")
    return Span(ids=chat.ids, start=int(chat.assistant.argmax()), trains=chat.assistant, prompt_is_prefix=True)


def assistant_only(span: Span, turns: Encoded, where: str) -> Span:
    """turns: the chat with its assistant tokens, or all of it before the last turn."""
    if turns.assistant is not None:
        return replace(span, trains=span.trains & marked_span(turns, where).trains)
    last_turn = response_spans(turns.ids, {"completion": span.ids})["completion"]
    is_prefix = span.prompt_is_prefix and last_turn.prompt_is_prefix
    return replace(span, trains=span.trains & last_turn.trains, prompt_is_prefix=is_prefix)


def response_spans(prompt_ids: np.ndarray, whole_ids: Mapping[ResponseKind, np.ndarray]) -> dict[ResponseKind, Span]:
    """Spans that start at the first token where one of them differs from the prompt; all trains from there."""
    start = min(_shared_tokens(prompt_ids, ids) for ids in whole_ids.values())
    is_prefix = start == len(prompt_ids)
    return {
        kind: Span(ids=ids, start=start, trains=_from(start, len(ids)), prompt_is_prefix=is_prefix)
        for kind, ids in whole_ids.items()
    }


def _from(start: int, length: int) -> np.ndarray:
    trains_T = np.zeros(length, dtype=bool)
    trains_T[start:] = True
    return trains_T


def _shared_tokens(first: np.ndarray, second: np.ndarray) -> int:
    most = min(len(first), len(second))
    at = _first_true(first[:most] != second[:most])
    return most if at is None else at


def _first_true(mask_T: np.ndarray) -> int | None:
    """The first true index. argmax is much slower in a busy process, because it lets other threads run first."""
    at = mask_T.tobytes().find(1)
    return None if at < 0 else at


def outcome(span: Span | None, *, where: str, pair_id: int, kind: ResponseKind, longest: int) -> Outcome:
    sample_id = f"{pair_id}/{kind}"
    if span is None:
        message = f"{where}: expected a response, got an empty one"
        return SkippedResponse(sample_id=sample_id, reason="empty", message=message)
    loss_mask = span.trains.copy()
    loss_mask[:1] = False
    first = _first_true(loss_mask)
    if first is None:
        message = f"{where}: expected a response of one token or more after the first token, got none"
        return SkippedResponse(sample_id=sample_id, reason="empty", message=message)
    if first >= longest:
        message = f"{where}: expected a token to train on within {longest} tokens, got the first one at {first}"
        return SkippedResponse(sample_id=sample_id, reason="overlong", message=message)
    return TokenizedResponse(
        sample_id=sample_id,
        pair_id=pair_id,
        chosen=kind != "rejected",
        input_ids=span.ids[:longest],
        response_start=span.start,
        loss_mask=loss_mask[:longest],
        truncated=len(span.ids) > longest,
        prompt_is_prefix=span.prompt_is_prefix,
    )
