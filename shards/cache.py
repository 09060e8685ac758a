"""ShardCache: reads any row of a finished cache, after checking it."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shards.errors import CacheDamaged, CacheMissing, TeacherUnavailable
from shards.files import file_sizes
from shards.format import schema
from shards.format.batches import BatchReader
from shards.format.content import rules, screen
from shards.format.encoding import codec
from shards.format.encoding.selection import Selection
from shards.format.index import INDEX_FILE, RowIndex, read_index
from shards.format.manifest import (
    PROVENANCE_FILE,
    VOCABULARY_FILE,
    Manifest,
    read_manifest,
    read_provenance,
    read_vocabulary,
    require_files,
)
from shards.format.schema import Pair, Role
from shards.format.scores import Response, Scores, Tokens, concatenate
from shards.notebook.cache_text import cache_html, cache_text
from shards.notebook.extras import extra
from shards.notebook.row import Row, TokenView
from shards.notebook.table import arrow_table
from shards.places.room import Room
from shards.places.url import is_url
from shards.remote import mirror_of, mirrored_manifest
from shards.teacher.compose import Teacher, compose
from shards.teacher.served import lacks
from shards.teacher.spec import TeacherSpec
from shards.token_texts import TokenTexts

ROWS_AT_A_TIME = 16
"""Rows that are decoded and checked at once: the cost is in the calls, not in the values."""


class Place(NamedTuple):
    """Where a row is: shard, record batch of the shard, row of the record batch."""

    shard: int
    batch: int
    row: int


class ShardCache:
    """A finished cache in a folder, or at a URL: `len(cache)` responses, read in any order.

    Opening reads the manifest and checks that every shard exists with its recorded size. The index is checked against
    its sha256 at first use, and the columns of a record batch against their crc32 when they are decoded. Nothing is
    memory-mapped. Instances can be pickled and used after a fork.

    name     what the user called it, for messages
    mirror   for a URL: brings its files into `folder` when they are needed; only the process that opened it can
    room     where copies of what lies in stores are; default: that without flags

    Raises CacheMissing if there is no finished cache and CacheDamaged if a file differs from the manifest.
    """

    def __init__(self, folder: str | Path, room: Room | None = None) -> None:
        self.mirror = mirror_of(str(folder), room) if is_url(folder) else None
        self.folder = Path(folder) if self.mirror is None else self.mirror.folder
        self.name = str(self.folder if self.mirror is None else self.mirror)
        self.manifest: Manifest = read_manifest(self.folder) if self.mirror is None else mirrored_manifest(self.mirror)
        self.plan = self.manifest.plan
        self._first_rows = np.array([shard.first_row for shard in self.plan.shards], dtype=np.int64)
        entries = [entry.entries for entry in self.manifest.entries]
        self.batches = BatchReader(self.folder, self.plan, self.mirror, entries)
        self._check_sizes()

    def __len__(self) -> int:
        return self.plan.rows

    def __getitem__(self, row: int) -> Response:
        """One response with all its stored values. Negative rows count from the end."""
        return self.read([row + len(self) if row < 0 else row])[0]

    @cached_property
    def vocabulary(self) -> Mapping[str, int]:
        """The token-to-id map of the models' tokenizer."""
        return read_vocabulary(self.bring(VOCABULARY_FILE).parent, self.manifest, self.name)

    @cached_property
    def provenance(self) -> Mapping[str, Any]:
        """The paths of models and data when the cache was built; not part of its identity."""
        return read_provenance(self.bring(PROVENANCE_FILE).parent, self.name)

    @cached_property
    def index(self) -> RowIndex:
        """Lengths, pairs and preference of all rows, from the cache's index file."""
        return read_index(self.bring(INDEX_FILE).parent, self.plan, self.name)

    @cached_property
    def token_texts(self) -> TokenTexts:
        """The text of every token, from the tokenizer that the cache brings. Raises as `TokenTexts.of`."""
        return TokenTexts.of(self)

    def bring(self, file: str) -> Path:
        """A file of the cache on this machine. Raises, for a URL, as `Mirror.ensure`."""
        return self.folder / file if self.mirror is None else self.mirror.ensure(file)

    def read(
        self, rows: Sequence[int], *, roles: Iterable[Role] | None = None, pairs: Iterable[Pair] | None = None
    ) -> list[Response]:
        """The responses of `rows`, in that order, with the values of these roles and pairs (default: all).

        Raises IndexError for a row number out of range, and CacheDamaged if a record batch cannot be decoded, the
        crc32 of a column differs, or a value is one that no row may hold.
        """
        selection, found = Selection.everything(self.plan, roles, pairs), []
        stored = self._rows(rows, selection)
        for start in range(0, len(rows), ROWS_AT_A_TIME):
            part = stored[start : start + ROWS_AT_A_TIME]
            found += codec.responses(part, self._scores(rows[start : start + len(part)], part, selection))
        return found

    def read_joined(self, rows: Sequence[int], selection: Selection) -> tuple[list[Tokens], Scores]:
        """The tokens of each of `rows`, and the scores of all of them, concatenated. Raises as `read`."""
        found = self._rows(rows, selection)
        scores = self._scores(rows, found, selection)
        return [Tokens(row[schema.INPUT_IDS], row[schema.LOSS_MASK]) for row in found], scores

    def _scores(self, rows: Sequence[int], stored: Sequence[codec.Row], selection: Selection) -> Scores:
        """The scores of rows as stored, concatenated. Raises CacheDamaged for values that no row may hold."""
        table = selection.columns(self.plan)
        if screen.misshapen(stored, table, self.plan) or screen.wrong_tokens(stored, self.plan):
            self._refuse(rows)
        scores = codec.decode_scores(stored, self.plan, selection)
        if screen.wrong_scores(scores, [len(row[schema.SUPPORT_COUNT]) for row in stored], self.plan):
            self._refuse(rows)
        return scores

    def _refuse(self, rows: Sequence[int]) -> None:
        """Raise CacheDamaged, naming file, row and column, for the first row that breaks a rule of docs/format.md."""
        everything = Selection.everything(self.plan)
        for number in rows:
            (row,) = self._rows([number], everything)
            where = f"{self.batches.name(int(self.shards_of([number])[0]))} row {number} ({row[schema.SAMPLE_ID]!r})"
            for _, text in rules.shape_faults(row, self.plan, self.plan.columns()):
                raise CacheDamaged(f"{where}: {text}")
            (response,) = codec.responses([row], codec.decode_scores([row], self.plan, everything))
            for _, text in rules.faults(response, self.plan):
                raise CacheDamaged(f"{where}: {text}")

    def _rows(self, rows: Sequence[int], selection: Selection) -> list[codec.Row]:
        """The rows as stored, in that order; each record batch is read once."""
        table = selection.columns(self.plan)
        names = tuple(column.name for column in table)
        places = self._places(rows)
        found: dict[Place, codec.Row] = {}
        for (shard, batch), wanted in groupby(sorted(set(places)), key=lambda place: place[:2]):
            split = codec.split_rows(self.batches.read(shard, batch, names), table)
            found |= {place: split[place.row] for place in wanted}
        return [found[place] for place in places]

    def read_columns(self, rows: Sequence[int] | np.ndarray, selection: Any) -> list[codec.Row]:
        """The columns of levels row and token of a selection, for each of `rows`. Raises as `read`."""
        stored = self._rows([int(row) for row in rows], selection)
        if stored and screen.wrong_tokens(stored, self.plan):
            self._refuse([int(row) for row in rows])
        return stored

    def check(self, spec: TeacherSpec) -> None:
        """Raise TeacherUnavailable, saying what is missing, if this cache cannot give the teacher of `spec`."""
        lacking = lacks(self.plan, spec)
        if lacking is not None:
            raise TeacherUnavailable(f"{self.name}: {lacking}")

    def teacher(self, rows: Sequence[int], spec: TeacherSpec) -> Teacher:
        """The teacher of `spec` at all positions of `rows`, concatenated."""
        self.check(spec)
        roles = {spec.anchor, spec.negative, "dpo"}
        responses = self.read(rows, roles=(r for r in schema.ROLES if r in roles), pairs=(spec.pair,))
        return compose(concatenate([response.scores for response in responses]), spec, self.plan.nodes)

    def shards_of(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """The shard of each of these rows."""
        return np.searchsorted(self._first_rows, rows, side="right") - 1

    # ---- for a person in a notebook

    def row(self, number: int, spec: TeacherSpec | None = None) -> Row:
        """A response with its texts and teacher: it shows itself, and has `to_pandas` and `plot`.

        spec: the teacher; default: the first preset that the cache serves.
        """
        return Row(self, number, spec)

    def show(self, number: int, spec: TeacherSpec | None = None) -> TokenView:
        """The same as coloured text whose tokens say what each model would have said instead."""
        return TokenView(self.row(number, spec))

    def to_polars(self, columns: Sequence[str], rows: Sequence[int] | None = None) -> Any:
        """Decoded columns as a polars.DataFrame, of these rows (default: all); `shards.notebook.table` has the names.

        Raises OptionError for unknown names, rows out of range, and a table that is larger than the memory.
        """
        return extra("polars").from_arrow(arrow_table(self, columns, rows))

    def to_pandas(self, columns: Sequence[str], rows: Sequence[int] | None = None) -> Any:
        """The same as a pandas.DataFrame."""
        extra("pandas")
        return arrow_table(self, columns, rows).to_pandas()

    def __repr__(self) -> str:
        return cache_text(self)

    def _repr_html_(self) -> str:
        return cache_html(self)

    def _places(self, rows: Sequence[int]) -> list[Place]:
        for row in rows:
            if not 0 <= row < len(self):
                raise IndexError(f"{self.name}: expected a row under {len(self)}, got {row}")
        numbers = np.asarray(rows, dtype=np.int64)
        shards = self.shards_of(numbers)
        batches, inside = np.divmod(numbers - self._first_rows[shards], self.plan.rows_per_batch)
        return list(map(Place, shards.tolist(), batches.tolist(), inside.tolist()))

    def _check_sizes(self) -> None:
        sizes = file_sizes(self.folder) if self.mirror is None else self.mirror.sizes
        if INDEX_FILE not in sizes:
            raise CacheMissing(f"{self.name}: expected a cache, found no {INDEX_FILE}")
        require_files(self.manifest, sizes, self.name)
