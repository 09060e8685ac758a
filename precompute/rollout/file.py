"""The output file of a rollout: how it is written, locked, continued after a kill and finished.

.FILE.jsonl.aligndistil-lock   first and until the end: keeps other rollouts out
FILE.jsonl.identity.json   second: the identity of the samples
FILE.jsonl.partial         then, batch by batch: the rows in the order of sampling
FILE.jsonl                 last: all rows, in the order of the data; the partial file is removed
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shards import strict_json
from shards.errors import CacheConflict
from shards.files import about, read_regular, remove_temporary_files
from shards.format.manifest import read_json, refuse_difference
from shards.format.writer import write_json, write_text

MAX_BYTES = 2**40
Key = tuple[int, int]
"""Prompt number, sample number."""


class SampleFile:
    """Rows with the keys `id` and `sample`, written batch by batch.

    Raises CacheConflict if the file, or its partial file, has other inputs or is not from a rollout.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.partial = path.with_name(f"{path.name}.partial")
        self.sidecar = path.with_name(f"{path.name}.identity.json")
        self.identity = identity
        self._require_ours()

    @property
    def is_done(self) -> bool:
        return self.path.exists()

    def begin(self) -> None:
        """Write the identity of the samples."""
        write_json(self.path.parent, self.sidecar.name, self.identity)
        self.partial.touch()
        for path in (self.path, self.sidecar):
            remove_temporary_files(path.parent, path.name)

    def keep(self, order: Sequence[Key], batch_size: int) -> list[dict[str, Any]]:
        """The rows that are already written, in whole batches; cuts the file off after them.

        order: the keys of all rows in the order of sampling, `batch_size` at a time.
        """
        try:
            lines = read_regular(self.partial, MAX_BYTES).splitlines(keepends=True)
        except OSError as exc:
            raise CacheConflict(f"{self.partial}: expected samples, got {exc.strerror}") from exc
        whole = lines[:-1] if lines and not lines[-1].endswith(b"\n") else lines
        count = len(whole) if len(whole) == len(order) else len(whole) // batch_size * batch_size
        rows = [self._parse(line, number) for number, line in enumerate(whole[:count], start=1)]
        for number, (row, key) in enumerate(zip(rows, order, strict=False), start=1):
            if key_of(row) != key:
                raise CacheConflict(f"{self.partial} line {number}: expected sample {key}, got {key_of(row)}")
        with about(self.partial), self.partial.open("r+b") as file:
            file.truncate(sum(len(line) for line in whole[:count]))
        return rows

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append a batch, and wait until it is on the disk."""
        with about(self.partial), self.partial.open("a", encoding="utf-8") as file:
            file.write("".join(map(_line, rows)))
            file.flush()
            os.fsync(file.fileno())

    def finish(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Move the finished file into place."""
        write_text(self.path.parent, self.path.name, "".join(map(_line, sorted(rows, key=key_of))))
        self.clean()

    def clean(self) -> None:
        self.partial.unlink(missing_ok=True)

    def _require_ours(self) -> None:
        """Refuse files of other inputs. Files of another run without a single batch are not worth keeping."""
        for path in (self.path, self.partial):
            if path.exists() and (path == self.path or path.stat().st_size):
                if self.sidecar.exists():
                    refuse_difference(read_json(self.sidecar), self.identity, f"{self.path}: holds another rollout")
                else:
                    raise CacheConflict(
                        f"{path}: expected {self.sidecar.name} beside it, found none; choose another name"
                    )

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            row: dict[str, Any] = strict_json.loads(line)
            key_of(row)
        except (ValueError, TypeError, KeyError) as exc:
            raise CacheConflict(f"{self.partial} line {number}: expected a sample, got {line[:40]!r}") from exc
        return row


def key_of(row: Mapping[str, Any]) -> Key:
    return row["id"], row["sample"]


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
