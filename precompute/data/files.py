"""Reads one local file of data row by row, each row with its place; refuses other kinds and damaged files.

Files are opened by their path, never by a pattern: `datasets` treats a name as a glob, so "d[1].parquet" would find
d1.parquet. The cache of `datasets` is not used either: it would not notice a changed file with the same modification
time, which `cp -p` and `rsync -t` produce.
"""

from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from precompute.data.text_files import COMPRESSIONS, TEXT_SUFFIXES, Extent, Row, WhereRow, text_rows
from shards.errors import DataError, first_line
from shards.format.encoding.messages import is_file, require_possible

TABLE_SUFFIXES = (".parquet", ".arrow")
EXPECTED_SUFFIXES = f"{', '.join(TEXT_SUFFIXES + TABLE_SUFFIXES)}, or {' or '.join(COMPRESSIONS)} behind one of text"
_BATCH_ROWS = 1024


def suffixes_of(name: str) -> tuple[str, str] | None:
    """Kind and compression of a file name, in lower case: (".jsonl", ".gz"); None for a name that is not supported."""
    path = Path(name.lower())
    compression = path.suffix if path.suffix in COMPRESSIONS else ""
    kind = Path(path.stem).suffix if compression else path.suffix
    kinds = TEXT_SUFFIXES if compression else TEXT_SUFFIXES + TABLE_SUFFIXES
    return (kind, compression) if kind in kinds else None


def require_supported(where: str, name: str) -> tuple[str, str]:
    """Kind and compression of a file name. Raises DataError for a name that is not supported."""
    found = suffixes_of(name)
    if found is None:
        raise DataError(f"{where}: expected a name that ends in {EXPECTED_SUFFIXES}, got {name}")
    return found


def file_rows(path: Path, extent: Extent | None = None) -> Iterator[WhereRow]:
    """The rows of a file. `where` is "prefs.jsonl line 17" for lines of text, else "prefs.parquet row 16".

    Lines count from 1, including blank ones, which give no row; rows count from 0. Raises DataError for an unsupported
    or damaged file, and for a row that is not an object. extent: told how far the file is read.
    """
    kind, compression = require_supported(str(path), path.name)
    extent = extent or Extent()
    if kind in TEXT_SUFFIXES:
        yield from text_rows(path, kind, compression, extent)
    else:
        yield from numbered(path.name, lambda: _table_rows(path, kind, extent), f"a {kind} file that can be read")


def numbered(
    name: str, open_rows: Callable[[], Iterable[Row]], expected: str, extent: Extent | None = None
) -> Iterator[WhereRow]:
    """Rows with their numbers; any library error on the way becomes a DataError.

    extent: told how far rows of a known number are read.
    """
    try:
        rows = open_rows()
        if extent is not None and isinstance(rows, Sized):
            extent.total = len(rows)
        for number, row in enumerate(rows):
            if extent is not None and isinstance(rows, Sized):
                extent.done = number + 1
            yield f"{name} row {number}", row
    except DataError:
        raise
    except Exception as exc:  # datasets, pyarrow and the hub client raise unrelated classes of errors
        raise DataError(f"{name}: expected {expected}, got {type(exc).__name__}: {first_line(exc)}") from exc


def _table_rows(path: Path, kind: str, extent: Extent) -> Iterator[Row]:
    import datasets

    with pa.OSFile(str(path)) as file:
        schema, batches = _parquet_batches(file) if kind == ".parquet" else _arrow_batches(file)
        features = datasets.Features.from_arrow_schema(schema)  # JSON columns of `datasets` are stored as text
        extent.total = pq.read_metadata(file).num_rows if kind == ".parquet" else file.size()
        for batch in batches:
            batch.validate(full=True)  # altered offsets would make us read past the end of a buffer
            extent.done = extent.done if kind == ".parquet" else file.tell()
            for start in range(0, len(batch), _BATCH_ROWS):
                for row in batch.slice(start, _BATCH_ROWS).to_pylist():
                    extent.done += kind == ".parquet"
                    yield features.decode_example(row)


def _parquet_batches(file: pa.NativeFile) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    opened = pq.ParquetFile(file)
    return opened.schema_arrow, opened.iter_batches(batch_size=_BATCH_ROWS)


def _arrow_batches(file: pa.NativeFile) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    require_possible(file)
    in_file_format = is_file(file)
    file.seek(0)
    if not in_file_format:  # `datasets` writes the streaming format under the same suffix
        stream = pa.ipc.open_stream(file)
        return stream.schema, iter(stream)
    opened = pa.ipc.open_file(file)
    return opened.schema, (opened.get_batch(i) for i in range(opened.num_record_batches))
