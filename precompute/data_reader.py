"""The rows of all sources in the form that tokenisation takes, and what a person should know of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from precompute.columns import Columns
from precompute.conversations import as_messages
from precompute.data import read_rows
from precompute.layouts import Layout, find_layout, split_row, used_values
from precompute.meaning import is_bad, require_no_lost_meaning, unused_columns
from precompute.sources import Data, Source, labels_of, take_rows
from precompute.text_files import Row
from shards.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRow:
    """A row: where it stands, what tokenisation reads of it, and the layout of its source."""

    where: str
    values: dict[str, Any]
    layout: Layout


class DataReader:
    """Gives the rows of Data, once, and notes what a person should know of them.

    find_layout tells a source's layout from its first row; every other row of the source must have it. Raises
    DataError for a row that cannot be used, or that says more than would be read.
    """

    def __init__(self, data: Data, find_layout: Callable[[Row, str], Layout] = find_layout) -> None:
        self._data, self._find_layout = data, find_layout
        self._labels = labels_of(data.sources)
        self.unused: dict[str, set[str]] = {label: set() for label in self._labels}
        self.rows = dict.fromkeys(self._labels, 0)
        self.empty_prompts = self.bad_rows = self.unlike_prompts = 0

    def __iter__(self) -> Iterator[DataRow]:
        left = self._data.limit
        for source, label in zip(self._data.sources, self._labels, strict=True):
            for row in islice(self._rows(source, label), left):
                self.rows[label] += 1
                yield row
            left = None if left is None else left - self.rows[label]

    def _rows(self, source: Source, label: str) -> Iterator[DataRow]:
        columns, layout = Columns(source.columns), None
        name = Path(source.name).name
        rows = take_rows(read_rows(source.name, source.split, source.config), source.take)
        for place, found in rows:
            where = place if label == name else label + place.removeprefix(name).removeprefix(source.name)
            row = as_messages(columns.apply(found, where), where, system=columns.system)
            layout = layout or self._find_layout(row, where)
            if is_bad(row, layout):
                self._count_bad(where)
            else:
                yield self._checked(row, layout, where, label)
        columns.require_seen(label)

    def _checked(self, row: Row, layout: Layout, where: str, label: str) -> DataRow:
        values = used_values(self._with_template(row, layout, where), layout, where)
        prompt, responses = split_row(values, layout, where)
        unused = unused_columns(row, layout)
        self.unlike_prompts += require_no_lost_meaning(row, unused, layout, prompt, responses, where)
        self.unused[label] |= unused
        self.empty_prompts += not prompt
        return DataRow(where=where, values=values, layout=layout)

    def _with_template(self, row: Row, layout: Layout, where: str) -> Row:
        if not self._data.template:
            return row
        if not layout.conversational:
            raise DataError(f"{where}: expected messages, which chat_template_kwargs is for, got text")
        own = row.get("chat_template_kwargs")
        if own is not None and not isinstance(own, dict):  # refused with the other values
            return row
        return row | {"chat_template_kwargs": {**self._data.template, **(own or {})}}

    def _count_bad(self, where: str) -> None:
        if not self._data.skip_bad:
            raise DataError(
                f"{where}: expected a response to learn from, got one labelled false; "
                "--on_label_false skip leaves such rows out"
            )
        self.bad_rows += 1

    def notes(self) -> list[str]:
        """What a person should know of the rows read so far, a line each."""
        lines = []
        if len(self.rows) > 1:
            lines.append("rows of each source: " + ", ".join(f"{label} {n:,}" for label, n in self.rows.items()))
        for label, names in self.unused.items():
            if names:
                of = f" of {label}" if len(self.unused) > 1 else ""
                lines.append(f"columns{of} that are not used: {', '.join(sorted(names))}")
        if self.empty_prompts:
            lines.append(f"rows with an empty prompt: {self.empty_prompts:,}")
        if self.bad_rows:
            lines.append(f"rows labelled false, left out: {self.bad_rows:,}")
        if self.unlike_prompts:
            lines.append(f"rows whose column prompt is not in their messages, which count: {self.unlike_prompts:,}")
        return lines
