"""--columns: which column of a source is the prompt, the chosen response and so on, if names differ from TRL's."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from precompute.data.text_files import Row
from shards.errors import DataError, OptionError

REQUIRED = ("prompt", "chosen", "rejected", "completion", "messages", "conversations")
OPTIONAL = ("system", "tools", "label", "chat_template_kwargs")
_ITEM = re.compile(r"(?:(\d+):)?([^=]+)=(.*)", re.DOTALL)


class Columns:
    """The mapping of one source: target -> its column, or several joined by +; an empty name drops a column."""

    def __init__(self, mapping: Mapping[str, str]) -> None:
        self.mapping = dict(mapping)
        self._unseen = {target: name for target, name in mapping.items() if name and target in OPTIONAL}

    @property
    def system(self) -> bool:
        """Whether a column has the system message."""
        return bool(self.mapping.get("system"))

    def apply(self, row: Row, where: str) -> Row:
        """The row with TRL's column names. Raises DataError if a required column is missing."""
        if not self.mapping:
            return row
        found: Row = {}
        taken: set[str] = set()
        for target, text in self.mapping.items():
            names = [text] if text in row or target not in REQUIRED else text.split("+")
            if missing := [name for name in names if name and name not in row and target in REQUIRED]:
                got = ", ".join(row)
                raise DataError(f"{where}: expected a column {missing[0]}, which --columns {target}= names, got {got}")
            if text:
                taken.update(names)
                found[target] = row.get(text) if len(names) == 1 else _joined(row, names, where)
            if text in row:
                self._unseen.pop(target, None)
        return {name: value for name, value in row.items() if name not in taken | self.mapping.keys()} | found

    def require_seen(self, source: str) -> None:
        """Raise DataError if an optional column was in no row at all: its name is probably misspelt."""
        for target, name in self._unseen.items():
            raise DataError(f"{source}: expected a column {name}, which --columns {target}={name} names, found none")


def _joined(row: Row, names: Sequence[str], where: str) -> str:
    texts: list[Any] = [row[name] for name in names if row[name] not in (None, "")]
    for text in texts:
        if not isinstance(text, str):
            raise DataError(f"{where}: expected text to join in {' and '.join(names)}, got {type(text).__name__}")
    return "\n".join(texts)


def parse_columns(items: Sequence[str], sources: int) -> list[dict[str, str]]:
    """The mapping of each source, from target=column, or N:target=column for source N. Raises OptionError."""
    found: list[dict[str, str]] = [{} for _ in range(sources)]
    for numbers, target, name in _items(items, sources):
        for number in numbers:
            if target in found[number]:
                raise OptionError(f"columns: expected {target}= once for a source, got {target}={name} too")
            found[number][target] = name
    return found


def _items(items: Sequence[str], sources: int) -> Iterator[tuple[Sequence[int], str, str]]:
    for item in items:
        match = _ITEM.fullmatch(item)
        if match is None:
            raise OptionError(f"columns: expected target=column, such as prompt=question, got {item!r}")
        number, target, name = match.groups()
        if number is not None and not 1 <= int(number) <= sources:
            raise OptionError(f"columns: expected a source from 1 to {sources} before the colon, got {item!r}")
        if name and target not in REQUIRED + OPTIONAL:
            legal = ", ".join(REQUIRED + OPTIONAL)
            raise OptionError(f"columns: expected one of {legal} before the equals sign, got {item!r}")
        yield range(sources) if number is None else [int(number) - 1], target, name
