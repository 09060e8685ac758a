"""The index of a cache: lengths, pair and preference of every row, in one small file beside the shards.

It is an Arrow IPC file of one uncompressed record batch, about 16 bytes a row, so that a cache of any number of shards
opens with one read. It is written before the first shard, from the tokenised data. The plan has its sha256.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from shards.errors import CacheDamaged, CacheMissing, first_line
from shards.files import read_regular
from shards.format import schema
from shards.format.encoding import arrays
from shards.format.encoding.messages import require_possible
from shards.format.manifest import INDEX_FILE
from shards.format.plan import Plan

INDEX_SCHEMA = pa.schema(
    [
        pa.field(schema.PAIR_ID, pa.int64(), nullable=False),
        pa.field(schema.CHOSEN, pa.bool_(), nullable=False),
        pa.field("num_tokens", pa.int32(), nullable=False),
        pa.field("num_positions", pa.int32(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowIndex:
    """For all rows, each (rows,): pair_id, chosen, tokens T and positions N."""

    pair_id: np.ndarray
    chosen: np.ndarray
    num_tokens: np.ndarray
    num_positions: np.ndarray

    def encoded(self) -> bytes:
        """The content of the file."""
        arrays = [pa.array(getattr(self, field.name), field.type) for field in INDEX_SCHEMA]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, INDEX_SCHEMA) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=INDEX_SCHEMA))
        return sink.getvalue().to_pybytes()


def indexed_columns(batch: pa.RecordBatch) -> dict[str, np.ndarray]:
    """The index values of the rows of a shard's record batch, from its columns."""
    flat = arrays.flatten(batch.select([schema.PAIR_ID, schema.CHOSEN, schema.INPUT_IDS, schema.SUPPORT_COUNT]))
    return {
        schema.PAIR_ID: flat[schema.PAIR_ID].values,
        schema.CHOSEN: flat[schema.CHOSEN].values,
        "num_tokens": np.diff(flat[schema.INPUT_IDS].offsets),
        "num_positions": np.diff(flat[schema.SUPPORT_COUNT].offsets),
    }


def read_index(folder: Path, plan: Plan, name: str | None = None) -> RowIndex:
    """The index of a cache. Raises CacheMissing without the file, CacheDamaged if it differs from the plan's sha256.

    name: what messages call the folder; default: its path.
    """
    path, where = folder / INDEX_FILE, f"{name or folder}/{INDEX_FILE}"
    try:
        content = read_regular(path, 64 * plan.rows + 2**16)
    except FileNotFoundError as exc:
        raise CacheMissing(f"{folder}: expected a cache, found no {INDEX_FILE}") from exc
    except OSError as exc:
        raise CacheDamaged(f"{where}: expected a readable file, got {first_line(exc)}") from exc
    found = hashlib.sha256(content).hexdigest()
    if found != plan.index_sha256:
        raise CacheDamaged(f"{where}: expected sha256 {plan.index_sha256}, got {found}")
    return _decoded(content, plan, where)


def _decoded(content: bytes, plan: Plan, where: str) -> RowIndex:
    try:
        require_possible(pa.BufferReader(content), compressed=False)
        table = pa.ipc.open_file(pa.py_buffer(content)).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as exc:
        raise CacheDamaged(f"{where}: expected an Arrow IPC file, got {first_line(exc)}") from exc
    if not table.schema.equals(INDEX_SCHEMA) or any(column.null_count for column in table.columns):
        raise CacheDamaged(f"{where}: expected the columns of format version {schema.FORMAT_VERSION}, got others")
    if table.num_rows != plan.rows:
        raise CacheDamaged(f"{where}: expected {plan.rows} rows, got {table.num_rows}")
    found = RowIndex(**{name: table.column(name).to_numpy() for name in INDEX_SCHEMA.names})
    for fault in _faults(found):
        raise CacheDamaged(f"{where} {fault}")
    return found


def _faults(index: RowIndex) -> Iterator[str]:
    """Values that no row may have, as far as the index tells."""
    rows = np.zeros(len(index.pair_id), np.int32)
    lowest = {schema.PAIR_ID: rows, "num_positions": rows + 1, "num_tokens": index.num_positions + 1}
    for name, bounds in lowest.items():
        values = getattr(index, name)
        if (values < bounds).any():
            row = int(np.argmax(values < bounds))
            yield f"row {row}: {name}: expected {bounds[row]} or more, got {values[row]}"
