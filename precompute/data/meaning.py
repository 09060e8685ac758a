"""Refuses unread columns that change the meaning of a row; the plan names the other unread ones."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from precompute.data.layouts import TEMPLATE_COLUMNS, Layout
from precompute.data.text_files import Row
from shards.errors import DataError

PROMPT_LIKE = frozenset({
    "prompt", "question", "instruction", "instructions", "input", "inputs", "query", "problem", "context", "history",
    "dialog", "dialogue", "conversation", "conversations", "human", "user_prompt", "system", "system_prompt",
    "system_message",
})  # fmt: skip
"""Column names, in lower case, that probably belong to the prompt."""
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
LABELS = ("label", "kto_tag")
_GOOD, _BAD = ("true", "1", "1.0"), ("false", "0", "0.0", "-1", "-1.0")


@dataclass(frozen=True, slots=True)
class RowParts:
    """The values read from a row. prompt_column: the source's name for its column prompt."""

    layout: Layout
    prompt_column: str
    prompt: Any
    responses: Mapping[Any, Any]


def is_bad(row: Row, layout: Layout) -> bool:
    """Whether a row without pairs marks its response as unwanted, as in KTO's data: label false."""
    return "rejected" not in layout.columns and any(_word(row.get(name)) in _BAD for name in LABELS)


def unused_columns(row: Row, layout: Layout) -> set[str]:
    """Columns with a value that is not read."""
    used = {*layout.columns, *(TEMPLATE_COLUMNS if layout.conversational else ())}
    if "rejected" not in layout.columns:
        used.update(name for name in LABELS if _word(row.get(name)) in _GOOD + _BAD)
    return {name for name, value in row.items() if name not in used and value is not None}


def require_no_lost_meaning(row: Row, unused: set[str], parts: RowParts, where: str) -> bool:
    """Raise DataError if an unused column has pictures, tools, or a prompt that the row's prompt does not contain.

    True if a column `prompt` that counts as a label (layouts.py) is not in the messages.
    """
    given = [name for name in row if name in unused and (row[name] or row[name] == 0)]
    for name in given:
        if name.lower() in MEDIA:
            raise DataError(f"{where} column {name}: expected text alone, got {name}, which cannot be read")
        if name in TEMPLATE_COLUMNS:
            raise DataError(f"{where} column {name}: expected messages, whose template reads it, got text")
    lost = [name for name in given if name.lower() in PROMPT_LIKE and not _stands_in(row[name], parts)]
    if others := [name for name in lost if name != "prompt"]:
        raise DataError(
            f"{where}: expected a prompt with all that belongs to it, got one without {' and '.join(others)}; "
            f"--columns {_remedy(row, others, parts)}"
        )
    return bool(lost)


def _remedy(row: Row, lost: list[str], parts: RowParts) -> str:
    """The flags to give; a way to use all of the columns only if there is one."""
    systems = [name for name in lost if name.lower().startswith("system")]
    asked = [name for name in lost if name not in systems]
    they = "it" if len(lost) == 1 else "them"
    leaves_out = f"{' '.join(f'{name}=' for name in lost)} leaves {they} out"
    takes_text = not parts.layout.conversational or not parts.prompt
    if len(systems) > 1 or (asked and not takes_text) or not all(isinstance(row[name], str) for name in lost):
        return leaves_out
    if not asked and parts.layout.columns == ("chosen", "rejected") and not parts.layout.conversational:
        return leaves_out  # no prompt to put the system message before
    before = [parts.prompt_column] if "prompt" in parts.layout.columns else []
    uses = [f"prompt={'+'.join(before + asked)}"] if asked else []
    return f"{' '.join(uses + [f'system={name}' for name in systems])} uses {they}, {leaves_out}"


def _stands_in(value: Any, parts: RowParts) -> bool:
    held = " ".join(_texts(parts.prompt))
    if not isinstance(value, str):  # a conversation can be the prompt with its answer
        held = " ".join([held, *(text for response in parts.responses.values() for text in _texts(response))])
    held = " ".join(held.split())
    return all(" ".join(text.split()) in held for text in _texts(value))


def _texts(value: Any) -> Iterator[str]:
    """All texts of messages, or of lists of texts; from an object its content or its value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts(next((value[name] for name in ("content", "value", "text") if value.get(name)), None))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, (bool, int, float, str)) else ""
