"""DataReader: the rows of all sources in the form that tokenisation takes, with notes for the user."""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from precompute.data.columns import Columns
from precompute.data.conversations import as_messages
from precompute.data.layouts import Layout, SourceRow, find_layout, find_prompt_layout, split_row, used_values
from precompute.data.meaning import RowParts, is_bad, require_no_lost_meaning, unused_columns
from precompute.data.reading import read_rows
from precompute.data.sources import Data, Source, labels_of, take_rows
from precompute.data.text_files import Extent, Row
from shards.errors import DataError


class DataReader:
    """Gives the rows of Data, once, and collects notes for the user.

    The first row of a source sets its layout, and every other row of the source must have it. prompts_only: responses
    are not read, and a row may have none. Raises DataError for a row that cannot be used, or that has content which
    would not be read.
    """

    def __init__(self, data: Data, *, prompts_only: bool = False) -> None:
        self._data, self._prompts_only = data, prompts_only
        self._labels = labels_of(data.sources)
        self.unused: dict[str, set[str]] = {label: set() for label in self._labels}
        self.rows = dict.fromkeys(self._labels, 0)
        self.bad_rows = self.unlike_prompts = 0
        self._extents = [Extent() for _ in data.sources]

    def __iter__(self) -> Iterator[SourceRow]:
        left = self._data.limit
        for source, label, extent in zip(self._data.sources, self._labels, self._extents, strict=True):
            for where, values, layout in islice(self._rows(source, label, extent), left):
                pair_id = sum(self.rows.values())
                self.rows[label] += 1
                yield SourceRow(where=where, values=values, layout=layout, pair_id=pair_id)
            if self.rows[label] == 0 and left != 0 and len(self._labels) > 1:
                raise DataError(f"{label}: expected a row or more of each source, found none")
            left = None if left is None else left - self.rows[label]

    def _rows(self, source: Source, label: str, extent: Extent) -> Iterator[tuple[str, dict[str, Any], Layout]]:
        columns, layout = Columns(source.columns), None
        name = Path(source.name).name
        rows = take_rows(read_rows(source.name, source.split, source.config, self._data.room, extent), source.take)
        for place, found in rows:
            where = place if label == name else label + place.removeprefix(name).removeprefix(source.name)
            row = as_messages(columns.apply(found, where), where, system=columns.system)
            layout = layout or (find_prompt_layout if self._prompts_only else find_layout)(row, where)
            if is_bad(row, layout) and not self._prompts_only:
                self._count_bad(where)
                continue
            values = used_values(self._with_template(row, layout, where), layout, where)
            self._note_unused(row, values, layout, columns, where, label)
            yield where, values, layout
        columns.require_seen(label)

    def _note_unused(
        self, row: Row, values: Mapping[str, Any], layout: Layout, columns: Columns, where: str, label: str
    ) -> None:
        unused = unused_columns(row, layout)
        if unused:
            parts = RowParts(layout, columns.mapping.get("prompt") or "prompt", *split_row(values, layout, where))
            self.unlike_prompts += require_no_lost_meaning(row, unused, parts, where)
            self.unused[label] |= unused

    def _with_template(self, row: Row, layout: Layout, where: str) -> Row:
        if not self._data.template:
            return row
        if not layout.conversational:
            raise DataError(f"{where}: expected messages, which chat_template_kwargs is for, got text")
        own = row.get("chat_template_kwargs")
        if own is not None and not isinstance(own, dict):  # refused later, with the other values
            return row
        return row | {"chat_template_kwargs": {**self._data.template, **(own or {})}}

    def _count_bad(self, where: str) -> None:
        if not self._data.skip_bad:
            raise DataError(
                f"{where}: expected a response to learn from, got one labelled false; "
                "--on_label_false skip leaves such rows out"
            )
        self.bad_rows += 1

    def expected_rows(self) -> int | None:
        """About how many rows there will be, from how far the sources are read; None if nothing is known yet."""
        sources, rows = self._data.sources, sum(self.rows.values())
        sizes = [Path(source.name).stat().st_size if Path(source.name).is_file() else 1 for source in sources]
        share = sum(size * extent.share for size, extent in zip(sizes, self._extents, strict=True)) / sum(sizes)
        found = round(rows / share) if share else None
        limits = [self._data.limit, sources[0].take if len(sources) == 1 else None]
        known = [limit for limit in limits if isinstance(limit, int)]
        return min([*known, *([] if found is None else [max(found, rows)])], default=None)

    def notes(self) -> list[str]:
        """The notes on the rows read so far, one line each."""
        lines = []
        if len(self.rows) > 1:
            lines.append("rows of each source: " + ", ".join(f"{label} {n:,}" for label, n in self.rows.items()))
        for label, names in self.unused.items():
            if names:
                of = f" of {label}" if len(self.unused) > 1 else ""
                lines.append(f"columns{of} that are not used: {', '.join(sorted(names))}")
        if self.bad_rows:
            lines.append(f"rows labelled false, left out: {self.bad_rows:,}")
        if self.unlike_prompts:
            lines.append(f"rows whose column prompt is not in their messages, which count: {self.unlike_prompts:,}")
        return lines
