"""Writes files whole or not at all (temporary name, fsync, rename), as long as their folder is still ours."""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shards.errors import CacheConflict, OptionError, WrongValues
from shards.files import about, flush, paths_under, temporary_name
from shards.format.content import rules
from shards.format.encoding import arrays, codec
from shards.format.encoding.layout import MAX_BATCH_BYTES
from shards.format.encoding.seal import sealed
from shards.format.index import INDEX_FILE, RowIndex
from shards.format.manifest import MANIFEST_FILE, Manifest
from shards.format.plan import Plan, ShardPlan
from shards.format.scores import Response
from shards.locks.lock import require_held

COMPRESSION_LEVEL = 3
BUFFER_BYTES = 1 << 18
"""Arrow writes a small record batch in hundreds of pieces, most of them of eight bytes."""


def write_shard(folder: Path, shard: ShardPlan, plan: Plan, responses: Sequence[Response]) -> None:
    """Write one shard of `plan`, its rows in order, as an Arrow IPC file of zstd-compressed record batches.

    Raises WrongValues, naming file, row and column, for a row that breaks a rule of docs/format.md.
    """
    exact = replace(plan, values="float32")  # what is stored may be rounded, but not what is about to be
    for number, response in enumerate(responses, shard.first_row):
        require_sound(response, exact, f"{folder / shard.file} row {number} ({response.sample_id!r})")
    buffered = pa.BufferedOutputStream
    with _whole(folder / shard.file) as temporary, buffered(pa.OSFile(str(temporary), "wb"), BUFFER_BYTES) as sink:
        _write_batches(sink, plan, _encoded(shard, plan, responses))


def require_sound(response: Response, plan: Plan, where: str) -> None:
    """Raise WrongValues if a row breaks a rule of docs/format.md; plan: for float32 values."""
    row = {name: np.ravel(values) for name, values in codec.stored(response, plan).items()}
    for _, text in rules.shape_faults(row, plan, plan.columns()):
        raise WrongValues(f"{where}: {text}")
    for _, text in rules.faults(response, plan):
        raise WrongValues(f"{where}: {text}")


def shard_bytes(plan: Plan, batches: Iterable[tuple[pa.RecordBatch, Mapping[bytes, bytes]]]) -> pa.Buffer:
    """The content of a shard with these record batches and their metadata."""
    sink = pa.BufferOutputStream()
    _write_batches(sink, plan, batches)
    return sink.getvalue()


def plan_bytes(plan: Plan) -> bytes:
    """The content of plan.json."""
    return sealed(json_bytes(plan.to_json()))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """The last step of a build."""
    write_bytes(folder, MANIFEST_FILE, sealed(json_bytes(manifest.to_json())))


def _encoded(
    shard: ShardPlan, plan: Plan, responses: Sequence[Response]
) -> Iterator[tuple[pa.RecordBatch, Mapping[bytes, bytes]]]:
    for start in range(0, len(responses), plan.rows_per_batch):
        batch = codec.encode(responses[start : start + plan.rows_per_batch], plan, plan.arrow_schema)
        if batch.nbytes > MAX_BATCH_BYTES:
            most = f"expected record batches of {MAX_BATCH_BYTES} bytes at most"
            raise OptionError(f"rows_per_batch: {most}, got {batch.nbytes}")
        yield batch, arrays.batch_metadata(batch, shard.first_row + start)


def _write_batches(
    sink: pa.NativeFile, plan: Plan, batches: Iterable[tuple[pa.RecordBatch, Mapping[bytes, bytes]]]
) -> None:
    options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", COMPRESSION_LEVEL), use_threads=False)
    writer = pa.ipc.new_file(sink, plan.arrow_schema, options=options)
    for batch, metadata in batches:
        writer.write_batch(batch, custom_metadata=metadata)
    writer.close()  # on success only: a file without its footer is not an Arrow file


def write_index(folder: Path, index: RowIndex) -> str:
    """Write the index of a cache atomically; returns the sha256 that the plan names."""
    content = index.encoded()
    write_bytes(folder, INDEX_FILE, content)
    return hashlib.sha256(content).hexdigest()


def write_json(folder: Path, file: str, value: Any) -> None:
    """Write a JSON file atomically."""
    write_bytes(folder, file, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """The content of a JSON file, indented for people."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_text(folder: Path, file: str, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    write_bytes(folder, file, text.encode())


def write_bytes(folder: Path, file: str, content: bytes) -> None:
    """Write a file atomically."""
    with _whole(folder / file) as temporary:
        temporary.write_bytes(content)


def require_absent_or_same(path: Path, content: bytes) -> None:
    """Raise CacheConflict if the file exists with other content: it may belong to the user."""
    with about(path):
        differs = path.exists() and path.read_bytes() != content
    if differs:
        raise CacheConflict(f"{path}: expected nothing of this name where no build was begun, found another file")


def publish(temporary: Path, path: Path) -> None:
    """Flush to the disk, then rename, then flush the folder. Raises CacheConflict if this process's lock was lost."""
    flush(temporary)
    try:
        require_held(path)
    except CacheConflict:
        temporary.unlink(missing_ok=True)  # it lies in another command's folder
        raise
    temporary.replace(path)
    flush(path.parent)


def publish_folder(temporary: Path, path: Path) -> None:
    """Flush every file of a folder to the disk, then rename the folder to `path`, which does not exist yet."""
    flush_files(paths_under(temporary))
    publish(temporary, path)


def flush_files(paths: Iterable[Path]) -> None:
    """Wait until the content of these files and folders is on the disk."""
    for path in paths:
        flush(path)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`: a file that takes its name if the context ends well, and is removed otherwise."""
    temporary = temporary_name(path.parent, path.name)
    try:
        with about(temporary):
            yield temporary
        publish(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
