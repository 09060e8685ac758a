"""Turns one row into tokenised responses: token ids, where the response starts, which of its tokens train.

The ids equal those of TRL's DPOTrainer (preference rows) and SFTTrainer (the others): prompt and response are tokenised
together, and the response starts where the result leaves the prompt tokenised alone.

Where TRL says nothing or trains on more:
* Of a response of several messages only assistant tokens train: those inside the template's generation markers, or
  without markers the last turn. The same holds for the `messages` layout.
* A response that is empty takes no part in finding where the other one of its pair starts.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from precompute.layouts import Layout, Messages, ResponseKind, shared_length, split_row
from shards.errors import DataError, ModelError
from shards.scores import Response, Scores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenizedResponse:
    """One response behind its prompt, T tokens in all.

    input_ids (T,) int32. response_start is the index of the first response token. loss_mask (T,) bool is true at the
    tokens to train on: never before response_start, and never at token 0, which nothing predicts. `truncated` says that
    the response was cut, `prompt_is_prefix` that the prompt tokenised alone is how input_ids starts.
    """

    sample_id: str
    pair_id: int
    chosen: bool
    input_ids: np.ndarray
    response_start: int
    loss_mask: np.ndarray
    truncated: bool
    prompt_is_prefix: bool

    def with_scores(self, scores: Scores) -> Response:
        """The row of a cache that it becomes."""
        return Response(
            sample_id=self.sample_id,
            pair_id=self.pair_id,
            chosen=self.chosen,
            response_start=self.response_start,
            input_ids=self.input_ids,
            loss_mask=self.loss_mask,
            scores=scores,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedResponse:
    """A response without a token to train on; `message` is one line: where, expected, got."""

    sample_id: str
    reason: Literal["overlong", "empty"]
    message: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Span:
    ids: list[int]
    start: int
    trains: np.ndarray
    prompt_is_prefix: bool


def tokenize_row(
    values: Mapping[str, Any],
    *,
    where: str,
    pair_id: int,
    layout: Layout,
    tokenizer: "PreTrainedTokenizerBase",
    kinds: Sequence[ResponseKind],
    max_length: int,
) -> list[TokenizedResponse | SkippedResponse]:
    """The responses of one row named by `kinds`, in that order, tokenised or with the reason why not.

    `values` is what `used_values` gives. max_length counts prompt and response. A response is cut there, without an end
    token. One whose prompt leaves no room is "overlong", and so is one without a token to train on before the cut; one
    that has no such token at all is "empty".

    Raises DataError where a last turn is not the assistant's, the prompt has no message, or the chat template refuses
    the row; ModelError for a tokenizer without the end token or the chat template that the format needs.
    """
    prompt, responses = split_row(values, layout, where)
    spans: dict[ResponseKind, _Span] = {}
    if responses and not layout.conversational:
        spans = _text_spans(tokenizer, prompt, responses)
    elif responses:
        chat = _Chat(tokenizer, values, where)
        whole_chat = layout.columns == ("messages",) and chat.tells_assistant_tokens
        spans = {"completion": chat.marked_span(values["messages"])} if whole_chat else chat.spans(prompt, responses)
    return [
        _outcome(spans.get(kind), where=f"{where} {kind}", pair_id=pair_id, kind=kind, max_length=max_length)
        for kind in kinds
    ]


def tokenize_prompt(
    prompt: str | Messages,
    values: Mapping[str, Any],
    *,
    where: str,
    tokenizer: "PreTrainedTokenizerBase",
) -> list[int]:
    """The token ids of a prompt alone, for a model to go on from: text as it is, messages with the generation prompt.

    `values` holds the row's arguments of the chat template, as `used_values` gives them. Raises as `tokenize_row`.
    """
    if isinstance(prompt, str):
        return _text_ids(tokenizer, prompt)
    return _Chat(tokenizer, values, where).prompt_ids(prompt)


def _text_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    return tokenizer(text, verbose=False)["input_ids"]


def _text_spans(
    tokenizer: "PreTrainedTokenizerBase", prompt: str, responses: dict[ResponseKind, str]
) -> dict[ResponseKind, _Span]:
    end_token = tokenizer.eos_token
    if not end_token:
        raise ModelError(f"{_name(tokenizer)}: expected an end-of-sequence token, which data as text needs, got none")

    texts = {kind: prompt + response.removesuffix(end_token) + end_token for kind, response in responses.items()}
    whole_ids = {kind: _text_ids(tokenizer, text) for kind, text in texts.items()}
    return _spans(_text_ids(tokenizer, prompt), whole_ids)


class _Chat:
    """The chat template with the arguments that one row brings for it."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", values: Mapping[str, Any], where: str) -> None:
        tools = values.get("tools")
        self.arguments = {
            "tools": json.loads(tools) if isinstance(tools, str) else tools,
            **values.get("chat_template_kwargs", {}),
        }
        self.tokenizer, self.where = tokenizer, where
        try:
            template = tokenizer.get_chat_template(self.arguments.get("chat_template"), self.arguments["tools"])
        except ValueError as exc:
            message = f"{_name(tokenizer)}: expected a chat template, which data as messages needs, got none"
            raise ModelError(message) from exc
        self.tells_assistant_tokens = tokenizer.is_fast and _GENERATION_MARKER.search(template) is not None

    def prompt_ids(self, prompt: Messages) -> list[int]:
        if not prompt:
            raise DataError(f"{self.where}: expected a prompt of one message or more, got none")
        return self._render(prompt, add_generation_prompt=True)["input_ids"]

    def spans(self, prompt: Messages, responses: dict[ResponseKind, Messages]) -> dict[ResponseKind, _Span]:
        prompt_ids = self.prompt_ids(prompt)
        whole = {kind: self._render(prompt + response)["input_ids"] for kind, response in responses.items()}
        spans = _spans(prompt_ids, whole)
        for kind, response in responses.items():
            if len(response) > 1:
                spans[kind] = self._assistant_only(spans[kind], prompt + response)
        return spans

    def marked_span(self, messages: Messages) -> _Span:
        """The span of a whole chat in which every assistant turn trains. Needs a template that tells them."""
        rendered = self._render(messages, return_assistant_tokens_mask=True)
        trains = np.array(rendered["assistant_masks"], dtype=bool)
        if not trains.any():
            raise DataError(f"{self.where}: expected assistant tokens inside the template's generation block, got none")
        return _Span(ids=rendered["input_ids"], start=int(trains.argmax()), trains=trains, prompt_is_prefix=True)

    def _assistant_only(self, span: _Span, messages: Messages) -> _Span:
        if self.tells_assistant_tokens:
            return replace(span, trains=span.trains & self.marked_span(messages).trains)
        earlier_ids = self._render(messages[:-1], add_generation_prompt=True)["input_ids"]
        last_turn = _spans(earlier_ids, {"completion": span.ids})["completion"]
        is_prefix = span.prompt_is_prefix and last_turn.prompt_is_prefix
        return replace(span, trains=span.trains & last_turn.trains, prompt_is_prefix=is_prefix)

    def _render(self, messages: Messages, **options: bool) -> Any:
        arguments: dict[str, Any] = {**self.arguments, **options, "tokenizer_kwargs": {"verbose": False}}
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **arguments)
        except Exception as exc:  # a template is code of its own and raises what it likes
            got = f"{type(exc).__name__}: {(str(exc).splitlines() or [''])[0]}"
            raise DataError(f"{self.where}: expected messages that the chat template takes, got {got}") from exc


def _spans(prompt_ids: list[int], whole_ids: dict[ResponseKind, list[int]]) -> dict[ResponseKind, _Span]:
    """Spans whose common start is the first token at which one of them leaves the prompt; all from there trains."""
    start = min(shared_length(prompt_ids, ids) for ids in whole_ids.values())
    is_prefix = start == len(prompt_ids)
    return {
        kind: _Span(ids=ids, start=start, trains=np.arange(len(ids)) >= start, prompt_is_prefix=is_prefix)
        for kind, ids in whole_ids.items()
    }


def _outcome(
    span: _Span | None, *, where: str, pair_id: int, kind: ResponseKind, max_length: int
) -> TokenizedResponse | SkippedResponse:
    sample_id = f"{pair_id}/{kind}"
    if span is None:
        message = f"{where}: expected a response, got an empty one"
        return SkippedResponse(sample_id=sample_id, reason="empty", message=message)
    loss_mask = span.trains.copy()
    loss_mask[:1] = False
    if not loss_mask.any():
        message = f"{where}: expected a response of one token or more behind the first token, got none"
        return SkippedResponse(sample_id=sample_id, reason="empty", message=message)
    if not loss_mask[:max_length].any():
        got = f"the first one at {loss_mask.argmax()}"
        message = f"{where}: expected a token to train on within {max_length} tokens, got {got}"
        return SkippedResponse(sample_id=sample_id, reason="overlong", message=message)
    return TokenizedResponse(
        sample_id=sample_id,
        pair_id=pair_id,
        chosen=kind != "rejected",
        input_ids=np.array(span.ids[:max_length], dtype=np.int32),
        response_start=span.start,
        loss_mask=loss_mask[:max_length],
        truncated=len(span.ids) > max_length,
        prompt_is_prefix=span.prompt_is_prefix,
    )


def _name(tokenizer: "PreTrainedTokenizerBase") -> str:
    return f"tokenizer of {tokenizer.name_or_path}" if tokenizer.name_or_path else "tokenizer"
