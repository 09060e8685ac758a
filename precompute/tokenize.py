"""Turns one row into tokenised responses: token ids, where the response starts, which of its tokens train.

The ids equal those of TRL's DPOTrainer (preference rows) and SFTTrainer (the others): prompt and response are tokenised
together, and the response starts where the result leaves the prompt tokenised alone. Layouts are named by their
columns, as in TRL; each holds text (the standard format) or messages for the chat template (the conversational one).

Where TRL says nothing, fails, or trains on more:
* A text prompt beside message lists, as in UltraFeedback, counts as a label, and the prompt is what chosen and rejected
  share. DPOTrainer 1.16 fails on such rows unless TRL's `maybe_extract_prompt`, which does the same, ran first.
* A key whose value is null counts as absent, at any depth of messages, `tools` and `chat_template_kwargs`: Arrow cannot
  tell the two apart. Where nulls matter, give `tools` or a call's arguments as a JSON string.
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

from shards.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, Any]]
ResponseKind = Literal["chosen", "rejected", "completion"]

_LAYOUTS = (("prompt", "chosen", "rejected"), ("chosen", "rejected"), ("prompt", "completion"), ("messages",))
_GENERATION_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
# set here for every row alike; any other argument of apply_chat_template may come with a row
_OUR_ARGUMENTS = frozenset({
    "conversation", "tokenize", "tokenizer_kwargs", "return_dict", "return_tensors", "return_assistant_tokens_mask",
    "add_generation_prompt", "continue_final_message", "padding", "truncation", "max_length",
})  # fmt: skip


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


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedResponse:
    """A response without a token to train on; `message` is one line: where, expected, got."""

    sample_id: str
    reason: Literal["overlong", "empty"]
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The columns that every row of a source has, and whether they hold messages rather than text."""

    columns: tuple[str, ...]
    conversational: bool

    @property
    def kinds(self) -> tuple[ResponseKind, ...]:
        return ("chosen", "rejected") if "rejected" in self.columns else ("completion",)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Span:
    ids: list[int]
    start: int
    trains: np.ndarray
    prompt_is_prefix: bool


def find_layout(row: Mapping[str, Any], where: str) -> Layout:
    """The layout of a source, told by its first row. Raises DataError where the columns fit none."""
    found = [name for name, value in row.items() if value is not None]
    columns = next((columns for columns in _LAYOUTS if set(columns) <= set(found)), None)
    if columns is None:
        expected = ", ".join("+".join(columns) for columns in _LAYOUTS)
        raise DataError(f"{where}: expected the columns of one of {expected}, got {', '.join(found) or 'none'}")
    conversational = isinstance(row[columns[-1]], list) or columns == ("messages",)
    if conversational and "rejected" in columns and isinstance(row.get("prompt"), str):
        columns = ("chosen", "rejected")
    return Layout(columns=columns, conversational=conversational)


def used_values(row: Mapping[str, Any], layout: Layout, where: str) -> dict[str, Any]:
    """All that tokenisation reads of a row, checked, without nulls. Raises DataError for a missing or unfit value."""
    check = _checked_messages if layout.conversational else _checked_text
    values: dict[str, Any] = {name: check(row.get(name), f"{where} column {name}") for name in layout.columns}
    if layout.conversational and row.get("tools") is not None:
        values["tools"] = _checked_tools(row["tools"], f"{where} column tools")
    if layout.conversational and row.get("chat_template_kwargs") is not None:
        values["chat_template_kwargs"] = _checked_kwargs(
            row["chat_template_kwargs"], f"{where} column chat_template_kwargs"
        )
    return values


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
    prompt, responses = _split(values, layout, where)
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


def _split(values: Mapping[str, Any], layout: Layout, where: str) -> tuple[Any, dict[ResponseKind, Any]]:
    """The prompt and the responses that are not empty, all text or all messages."""
    prompt: Any
    responses: dict[ResponseKind, Any]
    if layout.columns == ("messages",):
        prompt, responses = values["messages"][:-1], {"completion": values["messages"][-1:]}
    elif layout.columns == ("chosen", "rejected"):
        chosen, rejected = values["chosen"], values["rejected"]
        cut = _implicit_prompt_length(chosen, rejected)
        prompt, responses = chosen[:cut], {"chosen": chosen[cut:], "rejected": rejected[cut:]}
        if not chosen or not rejected:  # nothing tells the prompt
            responses = {}
    else:
        prompt, responses = values["prompt"], {kind: values[kind] for kind in layout.kinds}
    if layout.conversational:
        for kind, response in responses.items():
            if response and response[-1]["role"] != "assistant":
                raise DataError(f"{where} {kind}: expected a last turn by assistant, got one by {response[-1]['role']}")
    return prompt, {kind: response for kind, response in responses.items() if not _is_empty(response)}


def _implicit_prompt_length(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    """How many characters, or messages, chosen and rejected share as their prompt; TRL's rule.

    Where one is the start of the other, its last item stays a response. In text, a space before the point where they
    part belongs to the responses. (At the very first character TRL would look at the last one of chosen; that is not
    copied.)
    """
    shared = _shared_length(chosen, rejected)
    if shared == min(len(chosen), len(rejected)):
        return max(shared - 1, 0)
    return shared - 1 if shared and chosen[shared - 1] == " " else shared


def _text_spans(
    tokenizer: "PreTrainedTokenizerBase", prompt: str, responses: dict[ResponseKind, str]
) -> dict[ResponseKind, _Span]:
    end_token = tokenizer.eos_token
    if not end_token:
        raise ModelError(f"{_name(tokenizer)}: expected an end-of-sequence token, which data as text needs, got none")

    def ids(text: str) -> list[int]:
        return tokenizer(text, verbose=False)["input_ids"]

    texts = {kind: prompt + response.removesuffix(end_token) + end_token for kind, response in responses.items()}
    return _spans(ids(prompt), {kind: ids(text) for kind, text in texts.items()})


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

    def spans(self, prompt: Messages, responses: dict[ResponseKind, Messages]) -> dict[ResponseKind, _Span]:
        if not prompt:
            raise DataError(f"{self.where}: expected a prompt of one message or more, got none")
        prompt_ids = self._render(prompt, add_generation_prompt=True)["input_ids"]
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
    start = min(_shared_length(prompt_ids, ids) for ids in whole_ids.values())
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


def _is_empty(response: str | Messages) -> bool:
    if not response or isinstance(response, str):
        return not response
    last = response[-1]
    content = last.get("content", "")
    if isinstance(content, list):
        content = [part for part in content if part.get("type") != "text" or part.get("text")]
    return not content and not last.get("tool_calls")


def _checked_text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: expected text, got {_type_name(value)}")
    return value


def _checked_messages(value: Any, where: str) -> Messages:
    if not isinstance(value, list):
        raise DataError(f"{where}: expected a list of messages, got {_type_name(value)}")
    messages = _without_nulls(value)
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            got = f"the keys {', '.join(map(str, message))}" if isinstance(message, dict) else _type_name(message)
            raise DataError(f"{where} message {number}: expected an object with a role, got {got}")
        content = message.get("content", "")
        if not isinstance(content, str) and not _is_list_of_objects(content):
            got = _type_name(content)
            raise DataError(f"{where} message {number}: expected content as text or a list of parts, got {got}")
    return messages


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _checked_tools(value: Any, where: str) -> list[Any] | str:
    try:
        tools = json.loads(value) if isinstance(value, str) else value
    except ValueError as exc:
        raise DataError(f"{where}: expected a list or a list as JSON, got text that is not JSON ({exc})") from exc
    if not isinstance(tools, list):
        raise DataError(f"{where}: expected a list or a list as JSON, got {_type_name(tools)}")
    return value if isinstance(value, str) else _without_nulls(value)


def _checked_kwargs(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object, got {_type_name(value)}")
    if taken := sorted(_OUR_ARGUMENTS & value.keys()):
        raise DataError(f"{where}: expected variables of the chat template, got {', '.join(taken)}")
    return _without_nulls(value)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _type_name(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__


def _name(tokenizer: "PreTrainedTokenizerBase") -> str:
    return f"tokenizer of {tokenizer.name_or_path}" if tokenizer.name_or_path else "tokenizer"


def _shared_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))
