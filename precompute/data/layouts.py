"""Data layouts: which columns a source has, what tokenisation reads from a row, and where its prompt ends.

Layouts are named by their columns, as in TRL. Each holds text (the standard format) or messages for the chat template
(the conversational format).

* A text prompt beside message lists, as in UltraFeedback, counts as a label; the prompt is then the common start of
  chosen and rejected. DPOTrainer 1.16 fails on such rows unless TRL's `maybe_extract_prompt`, which does the same, ran.
* A key with the value null counts as absent, at any depth of messages, `tools` and `chat_template_kwargs`, because
  Arrow cannot tell the two apart. If nulls matter, give `tools` or the arguments of a call as a JSON string.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shards import strict_json
from shards.errors import DataError

Messages = list[dict[str, Any]]
ResponseKind = Literal["chosen", "rejected", "completion"]

TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
"""Columns with arguments for the chat template, in addition to messages."""
_LAYOUTS = (("prompt", "chosen", "rejected"), ("chosen", "rejected"), ("prompt", "completion"), ("messages",))
_MESSAGES_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*["'](role|content|from|value)["']\s*:""")
# set here for all rows; a row may bring any other argument of apply_chat_template
_OUR_ARGUMENTS = frozenset({
    "conversation", "tokenize", "tokenizer_kwargs", "return_dict", "return_tensors", "return_assistant_tokens_mask",
    "add_generation_prompt", "continue_final_message", "padding", "truncation", "max_length",
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The columns that every row of a source has, and whether they hold messages or text."""

    columns: tuple[str, ...]
    conversational: bool

    @property
    def kinds(self) -> tuple[ResponseKind, ...]:
        return ("chosen", "rejected") if "rejected" in self.columns else ("completion",)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceRow:
    """A row of the data, ready to be tokenised: the result of `used_values`, and its place in its source."""

    where: str
    values: Mapping[str, Any]
    layout: Layout
    pair_id: int


def find_layout(row: Mapping[str, Any], where: str) -> Layout:
    """The layout of a source, from its first row. Raises DataError if the columns fit no layout."""
    found = [name for name, value in row.items() if value is not None]
    columns = next((columns for columns in _LAYOUTS if set(columns) <= set(found)), None)
    if columns is None:
        expected = ", ".join("+".join(columns) for columns in _LAYOUTS)
        got = ", ".join(found) or "none"
        raise DataError(
            f"{where}: expected the columns of one of {expected}, got {got}; --columns prompt=NAME ... names others"
        )
    conversational = isinstance(row[columns[-1]], list) or columns == ("messages",)
    for name in columns:
        if not conversational and isinstance(row[name], str) and _MESSAGES_AS_TEXT.match(row[name]):
            raise DataError(f"{where} column {name}: expected text or a list of messages, got messages written as text")
    if conversational and "rejected" in columns and isinstance(row.get("prompt"), str):
        columns = ("chosen", "rejected")
    return Layout(columns=columns, conversational=conversational)


def find_prompt_layout(row: Mapping[str, Any], where: str) -> Layout:
    """The layout of a source whose responses are not read; it may have only a prompt."""
    given = {name for name, value in row.items() if value is not None}
    if "prompt" in given and not {"chosen", "rejected", "completion"} & given:
        return Layout(columns=("prompt",), conversational=isinstance(row["prompt"], list))
    return find_layout(row, where)


def used_values(row: Mapping[str, Any], layout: Layout, where: str) -> dict[str, Any]:
    """All values that tokenisation reads from a row, checked, without nulls. Raises DataError for a bad value."""
    check = _checked_messages if layout.conversational else _checked_text
    values: dict[str, Any] = {name: check(row.get(name), f"{where} column {name}") for name in layout.columns}
    if layout.conversational and row.get("tools") is not None:
        values["tools"] = _checked_tools(row["tools"], f"{where} column tools")
    if layout.conversational and row.get("chat_template_kwargs") is not None:
        values["chat_template_kwargs"] = _checked_kwargs(
            row["chat_template_kwargs"], f"{where} column chat_template_kwargs"
        )
    return values


def split_row(values: Mapping[str, Any], layout: Layout, where: str) -> tuple[Any, dict[ResponseKind, Any]]:
    """The prompt and the non-empty responses, all text or all messages; no responses if there is only a prompt."""
    prompt: Any
    responses: dict[ResponseKind, Any]
    if layout.columns == ("prompt",):
        return values["prompt"], {}
    if layout.columns == ("messages",):
        prompt, responses = values["messages"][:-1], {"completion": values["messages"][-1:]}
    elif layout.columns == ("chosen", "rejected"):
        chosen, rejected = values["chosen"], values["rejected"]
        cut = _implicit_prompt_length(chosen, rejected)
        prompt, responses = chosen[:cut], {"chosen": chosen[cut:], "rejected": rejected[cut:]}
        if not chosen or not rejected:  # the prompt cannot be found
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

    If one is the start of the other, its last item stays a response. In text, a space before the first difference
    belongs to the responses. (If the very first characters differ, TRL looks at the last one of chosen; that is not
    copied.)
    """
    shared = shared_length(chosen, rejected)
    if shared == min(len(chosen), len(rejected)):
        return max(shared - 1, 0)
    return shared - 1 if shared and chosen[shared - 1] == " " else shared


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
        tools = strict_json.loads(value, constants=True, large=True) if isinstance(value, str) else value
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
        return {
            key: item if isinstance(item, str) else _without_nulls(item)  # most values are text; this saves most calls
            for key, item in value.items()
            if item is not None
        }
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _type_name(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__


def shared_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many items two sequences share at the start, by bisection: comparing slices is much faster than items."""
    shared, end = 0, min(len(first), len(second))
    while shared < end:
        middle = (shared + end + 1) // 2
        if first[shared:middle] == second[shared:middle]:
            shared = middle
        else:
            end = middle - 1
    return shared
