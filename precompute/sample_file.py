"""The file of a rollout, while it is written and when it is done.

FILE.jsonl.partial         first, empty: its lock keeps other rollouts out. Then, batch by batch: the rows in the order
                           in which they are sampled
FILE.jsonl.identity.json   second, once the lock is ours: what the samples depend on
FILE.jsonl                 last: all rows, in the order of the data; the partial file goes
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.errors import CacheConflict
from shards.manifest import read_json, refuse_difference
from shards.writer import exclusive, write_json, write_text

Key = tuple[int, int]
"""Number of the prompt, number of the sample."""


class SampleFile:
    """Rows with the keys `id` and `sample`, written batch by batch.

    Raises CacheConflict where the file, or a part of it, is of other inputs or of no rollout at all.
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

    @contextlib.contextmanager
    def begun(self) -> Iterator[None]:
        """Have a partial file to append to, keep others out of it, and write down what the samples depend on.

        Raises CacheConflict where another rollout is at work, or was at work until just now with other inputs.
        """
        self.partial.touch()
        with exclusive(self.partial):
            try:
                self._require_ours()  # again: another one may have begun, or ended, since this one looked
            except CacheConflict:
                if not self.partial.stat().st_size:  # made above
                    self.clean()
                raise
            if not self.is_done:
                write_json(self.path.parent, self.sidecar.name, self.identity)
            yield

    def keep(self, order: Sequence[Key], batch_size: int) -> list[dict[str, Any]]:
        """The rows that were written already, of whole batches; cuts the file off behind them.

        order: the keys of all rows as they are sampled, `batch_size` at a time.
        """
        lines = self.partial.read_bytes().splitlines(keepends=True)
        whole = lines[:-1] if lines and not lines[-1].endswith(b"\n") else lines
        count = len(whole) if len(whole) == len(order) else len(whole) // batch_size * batch_size
        rows = [self._parse(line, number) for number, line in enumerate(whole[:count], start=1)]
        for number, (row, key) in enumerate(zip(rows, order, strict=False), start=1):
            if key_of(row) != key:
                raise CacheConflict(f"{self.partial} line {number}: expected sample {key}, got {key_of(row)}")
        with self.partial.open("r+b") as file:
            file.truncate(sum(len(line) for line in whole[:count]))
        return rows

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add a batch, and see it onto the disk."""
        with self.partial.open("a", encoding="utf-8") as file:
            file.write("".join(map(_line, rows)))
            file.flush()
            os.fsync(file.fileno())

    def finish(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put the whole file in place."""
        write_text(self.path.parent, self.path.name, "".join(map(_line, sorted(rows, key=key_of))))
        self.clean()

    def clean(self) -> None:
        self.partial.unlink(missing_ok=True)

    def _require_ours(self) -> None:
        """What another run began without a single batch is no work to keep."""
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
            row = json.loads(line)
            key_of(row)
        except (ValueError, TypeError, KeyError) as exc:
            raise CacheConflict(f"{self.partial} line {number}: expected a sample, got {line[:40]!r}") from exc
        return row


def key_of(row: Mapping[str, Any]) -> Key:
    return row["id"], row["sample"]


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
