"""Writes files whole or not at all (temporary name, fsync, rename), as long as their folder is still ours."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from shards.errors import CacheConflict
from shards.files import TEMPORARY_GLOB, flush, temporary_name
from shards.format.encoding import arrays, codec
from shards.format.index import INDEX_FILE, RowIndex
from shards.format.plan import Plan, ShardPlan
from shards.format.scores import Response
from shards.locks.lock import require_held

COMPRESSION_LEVEL = 3


def write_shard(folder: Path, shard: ShardPlan, plan: Plan, responses: Sequence[Response]) -> None:
    """Write one shard of `plan`, its rows in order, as an Arrow IPC file of zstd-compressed record batches."""
    options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", COMPRESSION_LEVEL), use_threads=False)
    temporary = temporary_name(folder, shard.file)
    with pa.OSFile(str(temporary), "wb") as sink:
        writer = pa.ipc.new_file(sink, plan.arrow_schema, options=options)
        for start in range(0, len(responses), plan.rows_per_batch):
            batch = codec.encode(responses[start : start + plan.rows_per_batch], plan, plan.arrow_schema)
            writer.write_batch(batch, custom_metadata=arrays.batch_metadata(batch, shard.first_row + start))
        writer.close()  # on success only: a file without its footer is not an Arrow file
    _publish(temporary, folder / shard.file)


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
    temporary = temporary_name(folder, file)
    temporary.write_bytes(content)
    _publish(temporary, folder / file)


def require_absent_or_same(path: Path, content: bytes) -> None:
    """Raise CacheConflict if the file exists with other content: it may belong to the user."""
    if path.exists() and path.read_bytes() != content:
        raise CacheConflict(f"{path}: expected nothing of this name where no build was begun, found another file")


def publish_folder(temporary: Path, path: Path) -> None:
    """Flush every file of a folder to the disk, then rename the folder to `path`, which does not exist yet."""
    flush_files(sorted(temporary.rglob("*")))
    _publish(temporary, path)


def flush_files(paths: Iterable[Path]) -> None:
    """Wait until the content of these files and folders is on the disk."""
    for path in paths:
        flush(path)


def remove_temporary_files(folder: Path) -> None:
    """Remove the temporary files of an interrupted build."""
    for path in folder.glob(TEMPORARY_GLOB):
        path.unlink()


def _publish(temporary: Path, path: Path) -> None:
    """Flush to the disk, then rename, then flush the folder. Raises CacheConflict if this process's lock was lost."""
    flush(temporary)
    try:
        require_held(path)
    except CacheConflict:
        temporary.unlink(missing_ok=True)  # it lies in another command's folder
        raise
    temporary.replace(path)
    flush(path.parent)
