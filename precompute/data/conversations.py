"""Turns other forms of conversations, such as ShareGPT's, into message lists for a chat template.

* ShareGPT: a column `conversations` of {from, value}, alone or as the prompt of chosen and rejected, which may be
  single objects (LLaMA-Factory's form); also {from, value} in any other column of messages.
* A text prompt with chosen and rejected that begin with the assistant: the prompt is the user's turn.
* A system column, if `--columns` names one: the first message. Text then becomes messages, because only a chat
  template has a place for it.
"""

from typing import Any

from precompute.data.text_files import Row
from shards.errors import DataError

SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
}
"""Value of `from` -> role. function_call is not in it: its name does not say which form a template expects."""

_COLUMNS = ("messages", "prompt", "chosen", "rejected", "completion")


def as_messages(row: Row, where: str, *, system: bool) -> Row:
    """The row with conversations as lists of {role, content}. `system`: its column system is the first message.

    Raises DataError for an unknown speaker, and for a system message that has no place.
    """
    row = _conversation_in_place(row)
    for name in _COLUMNS:
        if isinstance(row.get(name), (list, dict)):
            row[name] = _turns(row[name], f"{where} column {name}")
    if system:
        row = _system_in_front(row, where)
    if isinstance(row.get("prompt"), str) and row["prompt"] and _begins_with_assistant(row):
        asked = {"role": "user", "content": row.pop("prompt")}
        row |= {name: [asked, *row[name]] for name in ("chosen", "rejected")}
    return row


def _conversation_in_place(row: Row) -> Row:
    """Rename the column `conversations` to `messages`, or to the prompt of a pair."""
    row = dict(row)
    conversation = row.get("conversations")
    if not isinstance(conversation, list) or row.get("messages") is not None:
        return row
    chosen = row.get("chosen")
    if chosen is None or row.get("rejected") is None:
        row["messages"] = row.pop("conversations")
    elif row.get("prompt") is None and not (isinstance(chosen, list) and chosen[: len(conversation)] == conversation):
        row["prompt"] = row.pop("conversations")
    return row


def _turns(value: Any, where: str) -> Any:
    """Messages as a list, also if there is only one, with role and content instead of from and value."""
    messages = [value] if isinstance(value, dict) else value
    return [
        _turn(message, f"{where} message {number}")
        if isinstance(message, dict) and message.get("from") is not None
        else message
        for number, message in enumerate(messages)
    ]


def _turn(message: dict[str, Any], where: str) -> dict[str, Any]:
    speaker = message["from"]
    role = SPEAKERS.get(speaker.lower()) if isinstance(speaker, str) else None
    if role is None:
        raise DataError(f"{where}: expected from to be one of {', '.join(SPEAKERS)}, got {speaker}")
    rest = {name: value for name, value in message.items() if name not in ("from", "value")}
    return {"role": role, "content": message.get("value"), **rest}


def _begins_with_assistant(row: Row) -> bool:
    both = [row.get(name) for name in ("chosen", "rejected")]
    return all(
        isinstance(turns, list) and turns and isinstance(turns[0], dict) and turns[0].get("role") == "assistant"
        for turns in both
    )


def _system_in_front(row: Row, where: str) -> Row:
    text = row.pop("system", None)
    if text is not None and not isinstance(text, str):
        raise DataError(f"{where} column system: expected text, got {type(text).__name__}")
    if isinstance(row.get("prompt"), str):
        row["prompt"] = [{"role": "user", "content": row["prompt"]}]
        for name in ("chosen", "rejected", "completion"):
            if isinstance(row.get(name), str):
                row[name] = [{"role": "assistant", "content": row[name]}]
    starts: tuple[str, ...] = ("messages",) if row.get("messages") is not None else ("prompt",)
    if row.get(starts[0]) is None:
        starts = ("chosen", "rejected")
    for name in starts if text else ():
        turns = row.get(name)
        if not isinstance(turns, list):
            raise DataError(f"{where} column system: expected a prompt or messages to put it before, got neither")
        if turns and isinstance(turns[0], dict) and turns[0].get("role") == "system":
            raise DataError(f"{where} column system: expected no other system message in {name}, got two")
        row[name] = [{"role": "system", "content": text}, *turns]
    return row
