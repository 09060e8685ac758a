"""Opens shards and reads record batches, and refuses a file with another schema, build or crc32."""

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from shards.errors import CacheDamaged, OptionError
from shards.files import require_regular
from shards.format import schema
from shards.format.encoding import arrays
from shards.format.encoding.flatbuffer import Malformed
from shards.format.encoding.layout import Block, Form, read_blocks
from shards.format.plan import Plan
from shards.places.mirror import Mirror

MAX_OPEN_FILES = 256
SMALL_SHARD_BYTES = 256 * 1024  # read as a whole when opened: two system calls instead of forty
ROUNDS = 20
"""How often a shard may be removed by others between its arrival and its opening."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenShard:
    """A shard that is open for reading some of its columns.

    blocks: where its record batches are; form: of each; sums: of their crc32 metadata.
    """

    reader: pa.ipc.RecordBatchFileReader
    source: pa.NativeFile
    blocks: Sequence[Block]
    form: Form
    sums: re.Pattern[bytes]


class BatchReader:
    """Reads record batches of a build's shards, only the columns asked for. Nothing is memory-mapped.

    mirror: brings shards of a cache in a store into the folder when they are needed; None if they are all there.
    entries: the kept tokens of each shard, where they are known.

    Instances can be pickled and used after a fork, since files are opened when they are needed.
    """

    def __init__(
        self, folder: Path, plan: Plan, mirror: Mirror | None = None, entries: Sequence[int] | None = None
    ) -> None:
        self.folder = folder
        self.plan = plan
        self.mirror = mirror
        self.entries = entries
        self._openers: dict[tuple[str, ...], ShardOpener] = {}
        self._files: OrderedDict[tuple[int, tuple[str, ...]], OpenShard] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_openers": {}, "_files": OrderedDict()}

    def read(self, shard: int, batch: int, names: Sequence[str]) -> dict[str, arrays.Flat]:
        """Some columns of one record batch, checked against their crc32: name -> values and row offsets.

        Raises CacheDamaged, naming file and record batch, if it cannot be decoded or a column was altered.
        """
        where = f"{self.name(shard)} record batch {batch}"
        try:
            file, first_row = self._open(shard, tuple(names)), self.plan.first_row(shard, batch)
            most = self.plan.most_values(shard, batch, None if self.entries is None else self.entries[shard])
            found, metadata = load_batch(file, batch, first_row, most, where)
            return arrays.check_crc32(found, metadata, where, file.sums)
        except CacheDamaged as exc:
            altered = self.mirror and self.mirror.altered(self.plan.shards[shard].file)
            if altered:
                raise CacheDamaged(altered) from exc
            raise

    def name(self, shard: int) -> str:
        """A shard's file as the user knows it, for messages."""
        file = self.plan.shards[shard].file
        return str(self.folder / file) if self.mirror is None else self.mirror.name(file)

    def _open(self, shard: int, names: tuple[str, ...]) -> OpenShard:
        key = (shard, names)
        if key not in self._files:
            if names not in self._openers:
                self._openers[names] = ShardOpener(self.plan, names)
            self._files[key] = self._opened(shard, self._openers[names])
            if len(self._files) > MAX_OPEN_FILES:
                self._files.popitem(last=False)
        self._files.move_to_end(key)
        return self._files[key]

    def _opened(self, shard: int, opener: "ShardOpener") -> OpenShard:
        file = self.plan.shards[shard].file
        if self.mirror is None:
            return opener.open(self.folder / file)
        for _ in range(ROUNDS):
            self._close_for(file)
            path = self.mirror.ensure(file)
            try:
                return opener.open(path, self.name(shard))
            except CacheDamaged:
                if path.exists():
                    raise
        raise OptionError(f"cache_limit: expected room for {file} beside what others read, got {self.mirror.limit}")

    def _close_for(self, file: str) -> None:
        """Close shards that were removed, and all if this one needs room: an open file keeps its place on the disk."""
        if self.mirror is None or self.mirror.limit is None:
            return
        here = self.mirror.has(file)
        for shard, names in [*self._files]:
            if not here or not (self.folder / self.plan.shards[shard].file).exists():
                del self._files[shard, names]


class ShardOpener:
    """Opens the shards of a build to read some of their columns (default: all).

    The expected schema is computed once, because a cache of many shards opens shards again and again. Only the columns
    to be read are checked.
    """

    def __init__(self, plan: Plan, names: Sequence[str] | None = None) -> None:
        self.plan = plan
        self._schema: pa.Schema = plan.arrow_schema
        fields = None
        if names is not None:
            fields = sorted(self._schema.get_field_index(name) for name in names)
            self._schema = pa.schema([self._schema.field(i) for i in fields], metadata=self._schema.metadata)
        self._form = Form(plan.columns(), names)
        every = [column.name for column in plan.columns()]
        self._sums = arrays.sums_form(every, every if names is None else names)
        self._options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)

    def open(self, path: Path, name: str | None = None) -> OpenShard:
        """Raises CacheDamaged, calling the file `name`, unless it is an Arrow file of this build."""
        try:
            source = _source(path)
        except OSError as exc:
            raise CacheDamaged(f"{name or path}: expected an Arrow IPC file, got {one_line(exc)}") from exc
        return self.read(source, name or str(path))

    def read(self, source: pa.NativeFile, name: str) -> OpenShard:
        """The same of what is open already."""
        error: Exception | None = None
        try:
            blocks = read_blocks(source)
            file = pa.ipc.open_file(source, options=self._options)
            if file.schema.equals(self._schema) and _owner(file.schema) == self.plan.sha256:
                return OpenShard(reader=file, source=source, blocks=blocks, form=self._form, sums=self._sums)
        except Malformed as exc:
            raise CacheDamaged(f"{name}: {exc}") from exc
        except (pa.ArrowException, OSError, ValueError) as exc:
            error = exc
        raise CacheDamaged(f"{name}: {self._fault(source, error)}") from error

    def _fault(self, source: pa.NativeFile, error: Exception | None) -> str:
        """What is wrong with a file that could not be opened."""
        try:
            found = pa.ipc.open_file(source).schema
            differing = None if found.equals(self.plan.arrow_schema) else _difference(self.plan.arrow_schema, found)
            owner = _owner(found)
        except (pa.ArrowException, OSError, ValueError) as exc:  # ValueError: a name that is not UTF-8
            return f"expected an Arrow IPC file, got {one_line(exc)}"
        if differing is not None:
            return f"expected the columns of format version {schema.FORMAT_VERSION}, got {differing}"
        if owner != self.plan.sha256:
            return f"expected a shard of build {self.plan.sha256[:12]}, got one of {one_line(owner[:12]) or 'none'}"
        return f"expected a readable shard of this build, got {one_line(error)}"


def load_batch(
    file: OpenShard, batch: int, first_row: int, most: Mapping[schema.Level, int], where: str
) -> tuple[pa.RecordBatch, dict[bytes, bytes]]:
    """A record batch and its metadata, safe to compute with.

    most: the most values of each level; the rows exactly. Raises CacheDamaged, before anything is allocated, for a
    column that claims more, and unless the batch is readable and begins with the cache's row `first_row`.
    """
    rows = most["row"]
    if batch >= len(file.blocks):
        raise CacheDamaged(f"{where}: expected a readable record batch, got a file of {len(file.blocks)}")
    try:
        file.form.check(file.source, file.blocks[batch], most)
        found = file.reader.get_batch_with_custom_metadata(batch)
        found.batch.validate(full=True)  # altered lengths or offsets would make us read past the end of a buffer
    except Malformed as exc:
        raise CacheDamaged(f"{where} {exc}") from exc
    except (pa.ArrowException, OSError, ValueError) as exc:
        raise CacheDamaged(
            f"{where}{_broken(file, batch, most)}: expected a readable record batch, got {one_line(exc)}"
        ) from exc
    if found.batch.num_rows != rows:
        raise CacheDamaged(f"{where}: expected {rows} rows, got {found.batch.num_rows}")
    metadata = dict(found.custom_metadata or {})
    begins = metadata.get(schema.FIRST_ROW_KEY, b"none")
    if begins != str(first_row).encode():
        raise CacheDamaged(f"{where}: expected the batch that begins with row {first_row}, got {ascii(begins)[2:-1]}")
    return found.batch, metadata


def _broken(file: OpenShard, batch: int, most: Mapping[schema.Level, int]) -> str:
    """The column of a record batch that cannot be decompressed, if there is one, for the message."""
    try:
        buffers = file.form.read(file.source, file.blocks[batch], most)
    except Malformed:  # changed since it was checked
        return ""
    for buffer in buffers:
        if buffer.claimed in (buffer.stored, buffer.stored - 8):  # not compressed
            continue
        stored = file.source.read_at(buffer.stored, buffer.offset)
        try:
            pa.Codec("zstd").decompress(stored[8:], buffer.claimed)
        except (pa.ArrowException, OSError):
            return f" column {buffer.column}"
    return ""


def _source(path: Path) -> pa.NativeFile:
    """The file at `path`: a small one as a whole in memory, a large one read in parts as needed."""
    require_regular(path, path.stat())  # opening a pipe would wait for a writer
    file = pa.OSFile(str(path), "rb")
    return pa.BufferReader(file.read_buffer()) if file.size() <= SMALL_SHARD_BYTES else file


def _owner(found: pa.Schema) -> str:
    return (found.metadata or {}).get(schema.BUILD_KEY, b"").decode()


def _difference(expected: pa.Schema, found: pa.Schema) -> str:
    for ours, theirs in zip(expected, found, strict=False):
        if ours != theirs:
            return one_line(f"{theirs} where {ours} belongs")
    return f"{len(found)} columns where {len(expected)} belong"


def one_line(message: object) -> str:
    return " ".join(str(message).split())
