"""Turns rows into tokenised responses: token ids, where the response starts, which of its tokens train.

The ids equal those of TRL's DPOTrainer (preference rows) and SFTTrainer (the others): prompt and response are tokenised
together, and the response starts where the result leaves the prompt tokenised alone.

Where TRL says nothing or trains on more:
* Of a response of several messages only assistant tokens train: those inside the template's generation markers, or
  without markers the last turn. The same holds for the `messages` layout.
* A response that is empty takes no part in finding where the other one of its pair starts.
"""

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from precompute.encode import Conversation, Encoded, Request, encode_all, encode_requests
from precompute.layouts import Messages, ResponseKind, split_row
from precompute.tokenized import Outcome, SkippedResponse, SourceRow, TokenizedResponse, TokenizedRow
from shards.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Parts:
    """A row, its prompt and its responses that are not empty; `whole`: of a chat whose every assistant turn trains."""

    row: SourceRow
    prompt: Any
    responses: Mapping[ResponseKind, Any]
    whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Span:
    ids: np.ndarray
    start: int
    trains: np.ndarray
    prompt_is_prefix: bool


def tokenize_rows(
    rows: Iterable[SourceRow], *, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> Iterator[TokenizedRow]:
    """Each row, in order, with its responses, tokenised or with the reason why not. Rows are read a batch ahead.

    max_length counts prompt and response. A response is cut there, without an end token. One whose prompt leaves no
    room is "overlong", and so is one without a token to train on before the cut; one that has no such token at all is
    "empty".

    Raises DataError where a last turn is not the assistant's, the prompt has no message, or the chat template refuses
    the row; ModelError for a tokenizer without the end token or the chat template that the format needs.
    """
    for parts, encoded in encode_all((requests_of(row, tokenizer) for row in rows), tokenizer):
        yield _tokenized(parts, encoded, max_length)


def tokenize_row(row: SourceRow, *, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> TokenizedRow:
    """The responses of one row; as `tokenize_rows`."""
    parts, requests = requests_of(row, tokenizer)
    return _tokenized(parts, encode_requests(requests, tokenizer), max_length)


def prompt_request(
    prompt: str | Messages, values: Mapping[str, Any], *, where: str, tokenizer: "PreTrainedTokenizerBase"
) -> Request:
    """A prompt alone, for a model to go on from: text as it is, messages with the generation prompt.

    `values` holds the row's arguments of the chat template, as `used_values` gives them. Raises as `tokenize_rows`.
    """
    if isinstance(prompt, str):
        return prompt
    arguments = _template_arguments(values)
    _template(tokenizer, arguments)
    return _prompt(prompt, arguments, where)


def requests_of(row: SourceRow, tokenizer: "PreTrainedTokenizerBase") -> tuple[_Parts, dict[str, Request]]:
    """What is to be tokenised of a row: its prompt, and each response behind it."""
    prompt, responses = split_row(row.values, row.layout, row.where)
    parts = _Parts(row=row, prompt=prompt, responses=responses)
    if not responses:
        return parts, {}
    if not row.layout.conversational:
        return parts, _text_requests(tokenizer, prompt, responses)
    arguments = _template_arguments(row.values)
    told = tokenizer.is_fast and _tells_assistant(_template(tokenizer, arguments))
    if told and row.layout.columns == ("messages",):
        chat = Conversation(messages=row.values["messages"], arguments=arguments, where=row.where, with_mask=True)
        return replace(parts, whole=True), {"completion": chat}
    return parts, _chat_requests(prompt, responses, arguments, row.where, told=told)


def _text_requests(
    tokenizer: "PreTrainedTokenizerBase", prompt: str, responses: Mapping[ResponseKind, str]
) -> dict[str, Request]:
    end_token = tokenizer.eos_token
    if not end_token:
        raise ModelError(f"{_name(tokenizer)}: expected an end-of-sequence token, which data as text needs, got none")
    whole: dict[str, Request] = {
        kind: prompt + response.removesuffix(end_token) + end_token for kind, response in responses.items()
    }
    return {"prompt": prompt, **whole}


def _chat_requests(
    prompt: Messages,
    responses: Mapping[ResponseKind, Messages],
    arguments: Mapping[str, Any],
    where: str,
    *,
    told: bool,
) -> dict[str, Request]:
    """told: the template tells assistant tokens; else those of several messages are what follows the last but one."""
    requests: dict[str, Request] = {"prompt": _prompt(prompt, arguments, where)}
    for kind, response in responses.items():
        whole = prompt + response
        requests[kind] = Conversation(messages=whole, arguments=arguments, where=where)
        if len(response) > 1:
            requests[f"{kind} turns"] = (
                Conversation(messages=whole, arguments=arguments, where=where, with_mask=True)
                if told
                else _prompt(whole[:-1], arguments, where)
            )
    return requests


def _prompt(messages: Messages, arguments: Mapping[str, Any], where: str) -> Conversation:
    if not messages:
        raise DataError(f"{where}: expected a prompt of one message or more, got none")
    return Conversation(messages=messages, arguments=arguments, where=where, add_generation_prompt=True)


def _template_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the chat template that one row brings."""
    tools = values.get("tools")
    given = json.loads(tools) if isinstance(tools, str) else tools
    return {"tools": given, **values.get("chat_template_kwargs", {})}


def _template(tokenizer: "PreTrainedTokenizerBase", arguments: Mapping[str, Any]) -> str:
    """The chat template that a row is rendered with. Raises ModelError where there is none, or none is the default."""
    asked, templates = arguments.get("chat_template"), tokenizer.chat_template
    if asked is not None and "{" not in asked and asked not in (templates if isinstance(templates, dict) else ()):
        # transformers would take the name for a template, which is the same text for every row
        got = ", ".join(templates) if isinstance(templates, dict) else "one template, without a name"
        raise ModelError(f"{_name(tokenizer)}: expected a chat template called {asked}, got {got}")
    try:
        return tokenizer.get_chat_template(arguments.get("chat_template"), arguments["tools"])
    except ValueError as exc:
        named = tokenizer.chat_template
        got = "none"
        if isinstance(named, dict):
            choice = json.dumps({"chat_template": min(named)})
            got = f"several without a default ({', '.join(named)}); --chat_template_kwargs '{choice}' chooses one"
        message = f"{_name(tokenizer)}: expected a chat template, which data as messages needs, got {got}"
        raise ModelError(message) from exc


@functools.lru_cache(maxsize=16)
def _tells_assistant(template: str) -> bool:
    return _GENERATION_MARKER.search(template) is not None


def _tokenized(parts: _Parts, encoded: Mapping[str, Encoded], max_length: int) -> TokenizedRow:
    row = parts.row
    spans: dict[ResponseKind, _Span] = {}
    if parts.whole:
        spans = {"completion": _marked_span(encoded["completion"], row.where)}
    elif parts.responses:
        spans = _spans(encoded["prompt"].ids, {kind: encoded[kind].ids for kind in parts.responses})
    for kind in parts.responses:
        if turns := encoded.get(f"{kind} turns"):
            spans[kind] = _assistant_only(spans[kind], turns, row.where)
    outcomes = {
        kind: _outcome(spans.get(kind), where=f"{row.where} {kind}", pair_id=row.pair_id, kind=kind, longest=max_length)
        for kind in row.layout.kinds
    }
    return TokenizedRow(row=row, outcomes=outcomes, empty_prompt=not parts.prompt)


def _marked_span(chat: Encoded, where: str) -> _Span:
    """The span of a whole chat in which every assistant turn trains."""
    assert chat.assistant is not None, "was asked for"
    if not chat.assistant.any():
        raise DataError(f"{where}: expected assistant tokens inside the template's generation block, got none")
    return _Span(ids=chat.ids, start=int(chat.assistant.argmax()), trains=chat.assistant, prompt_is_prefix=True)


def _assistant_only(span: _Span, turns: Encoded, where: str) -> _Span:
    """turns: the chat with its assistant tokens, or all of it before the last turn."""
    if turns.assistant is not None:
        return replace(span, trains=span.trains & _marked_span(turns, where).trains)
    last_turn = _spans(turns.ids, {"completion": span.ids})["completion"]
    is_prefix = span.prompt_is_prefix and last_turn.prompt_is_prefix
    return replace(span, trains=span.trains & last_turn.trains, prompt_is_prefix=is_prefix)


def _spans(prompt_ids: np.ndarray, whole_ids: Mapping[ResponseKind, np.ndarray]) -> dict[ResponseKind, _Span]:
    """Spans whose common start is the first token at which one of them leaves the prompt; all from there trains."""
    start = min(_shared_tokens(prompt_ids, ids) for ids in whole_ids.values())
    is_prefix = start == len(prompt_ids)
    return {
        kind: _Span(ids=ids, start=start, trains=_from(start, len(ids)), prompt_is_prefix=is_prefix)
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
    """argmax, which lets other threads of a busy process go first, takes far longer."""
    at = mask_T.tobytes().find(1)
    return None if at < 0 else at


def _outcome(span: _Span | None, *, where: str, pair_id: int, kind: ResponseKind, longest: int) -> Outcome:
    sample_id = f"{pair_id}/{kind}"
    if span is None:
        message = f"{where}: expected a response, got an empty one"
        return SkippedResponse(sample_id=sample_id, reason="empty", message=message)
    loss_mask = span.trains.copy()
    loss_mask[:1] = False
    first = _first_true(loss_mask)
    if first is None:
        message = f"{where}: expected a response of one token or more behind the first token, got none"
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


def _name(tokenizer: "PreTrainedTokenizerBase") -> str:
    return f"tokenizer of {tokenizer.name_or_path}" if tokenizer.name_or_path else "tokenizer"
