"""Writes files whole or not at all (temporary name, fsync, rename); locks a folder against other builds."""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from shards.errors import CacheConflict
from shards.files import flush, is_still, temporary_name
from shards.format.encoding import arrays, codec
from shards.format.index import INDEX_FILE, RowIndex
from shards.format.plan import Plan, ShardPlan
from shards.format.scores import Response
from shards.say import warn

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
    publish(temporary, folder / shard.file)


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
    publish(temporary, folder / file)


def require_absent_or_same(path: Path, content: bytes) -> None:
    """Raise CacheConflict if the file exists with other content: it may belong to the user."""
    if path.exists() and path.read_bytes() != content:
        raise CacheConflict(f"{path}: expected nothing of this name where no build was begun, found another file")


def publish(temporary: Path, path: Path) -> None:
    """Flush to the disk, then rename, then flush the folder."""
    flush(temporary)
    temporary.replace(path)
    flush(path.parent)


def publish_folder(temporary: Path, path: Path) -> None:
    """Flush every file of a folder to the disk, then rename the folder to `path`, which does not exist yet."""
    flush_files(sorted(temporary.rglob("*")))
    publish(temporary, path)


def flush_files(paths: Iterable[Path]) -> None:
    """Wait until the content of these files and folders is on the disk."""
    for path in paths:
        flush(path)


@contextlib.contextmanager
def exclusive(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep other builds out of a folder while this one writes there. Raises CacheConflict if another one does.

    wait: wait for the other one instead; for short work only.

    The lock is an advisory lock of the folder itself. It leaves no file and ends with the process. What was read
    before the lock may have changed: read it again.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as exc:
            raise CacheConflict(f"{folder}: expected no other build at work here, found one") from exc
        except OSError as exc:  # a file system without locks
            warn(f"{folder}: cannot be locked ({exc}); see that no other build writes there")
        if not is_still(folder, descriptor):  # a lock on a removed file excludes nobody
            raise CacheConflict(f"{folder}: expected no other build at work here, found one that has just ended")
        yield
    finally:
        os.close(descriptor)
