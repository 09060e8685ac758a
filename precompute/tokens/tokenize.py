"""Decides what of a row is tokenised, where its response starts, and which tokens are trained on.

The ids equal those of TRL's DPOTrainer (preference rows) and SFTTrainer (others): prompt and response are tokenised
together, and the response starts where the result differs from the prompt tokenised alone.

Where TRL has no rule or trains on more:
* In a response of several messages only assistant tokens are trained on: those inside the template's generation
  markers, or without markers the last turn. The same holds for the `messages` layout.
* An empty response is ignored when the start of the other one of its pair is searched.
"""

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from precompute.data.layouts import Messages, ResponseKind, SourceRow, split_row
from precompute.tokens.encode import Conversation, Encoded, Request, encode_all, encode_requests
from precompute.tokens.spans import Span, assistant_only, marked_span, outcome, response_spans
from precompute.tokens.tokenized import TokenizedRow
from shards import strict_json
from shards.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Parts:
    """A row, its prompt and its non-empty responses; `whole`: a chat in which every assistant turn is trained on."""

    row: SourceRow
    prompt: Any
    responses: Mapping[ResponseKind, Any]
    whole: bool = False


def tokenize_rows(
    rows: Iterable[SourceRow], *, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> Iterator[TokenizedRow]:
    """Each row, in order, with its responses, tokenised or with the reason why not. Rows are read one batch ahead.

    max_length counts prompt and response. A response is cut there, without an end token. One whose prompt leaves no
    room, or that has no token to train on before the cut, is "overlong"; one that has no such token at all is "empty".

    Raises DataError if a last turn is not the assistant's, the prompt has no message, or the chat template refuses the
    row; ModelError for a tokenizer without the end token or the chat template that the format needs.
    """
    for parts, encoded in encode_all((requests_of(row, tokenizer) for row in rows), tokenizer):
        yield _tokenized(parts, encoded, max_length)


def tokenize_row(row: SourceRow, *, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> TokenizedRow:
    """The responses of one row; see `tokenize_rows`."""
    parts, requests = requests_of(row, tokenizer)
    return _tokenized(parts, encode_requests(requests, tokenizer), max_length)


def prompt_request(
    prompt: str | Messages, values: Mapping[str, Any], *, where: str, tokenizer: "PreTrainedTokenizerBase"
) -> Request:
    """A prompt to continue from: text unchanged, messages with the generation prompt.

    `values` has the row's arguments of the chat template, from `used_values`. Raises as `tokenize_rows`.
    """
    if isinstance(prompt, str):
        return prompt
    arguments = _template_arguments(values)
    _template(tokenizer, arguments)
    return _prompt(prompt, arguments, where)


def requests_of(row: SourceRow, tokenizer: "PreTrainedTokenizerBase") -> tuple[_Parts, dict[str, Request]]:
    """The requests for a row: its prompt, and each response after it."""
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
    """told: the template marks assistant tokens; else, with several messages, they are those after the last but one."""
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
    """The arguments of the chat template from one row."""
    tools = values.get("tools")
    given = strict_json.loads(tools, constants=True, large=True) if isinstance(tools, str) else tools
    return {"tools": given, **values.get("chat_template_kwargs", {})}


def _template(tokenizer: "PreTrainedTokenizerBase", arguments: Mapping[str, Any]) -> str:
    """The chat template for a row. Raises ModelError if there is none, or several without a default."""
    asked, templates = arguments.get("chat_template"), tokenizer.chat_template
    if asked is not None and "{" not in asked and asked not in (templates if isinstance(templates, dict) else ()):
        # transformers would take the name as the template itself, and so give every row the same text
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
    spans: dict[ResponseKind, Span] = {}
    if parts.whole:
        spans = {"completion": marked_span(encoded["completion"], row.where)}
    elif parts.responses:
        spans = response_spans(encoded["prompt"].ids, {kind: encoded[kind].ids for kind in parts.responses})
    for kind in parts.responses:
        if turns := encoded.get(f"{kind} turns"):
            spans[kind] = assistant_only(spans[kind], turns, row.where)
    outcomes = {
        kind: outcome(spans.get(kind), where=f"{row.where} {kind}", pair_id=row.pair_id, kind=kind, longest=max_length)
        for kind in row.layout.kinds
    }
    return TokenizedRow(row=row, outcomes=outcomes, empty_prompt=not parts.prompt)


def _name(tokenizer: "PreTrainedTokenizerBase") -> str:
    return f"tokenizer of {tokenizer.name_or_path}" if tokenizer.name_or_path else "tokenizer"
