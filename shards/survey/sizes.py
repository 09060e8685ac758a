"""Bytes of a cache's shards by column, as they are stored: compressed."""

import contextlib
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from shards.cache import ShardCache
from shards.errors import CacheDamaged, first_line
from shards.spread import FEW_SHARDS, spread

BATCHES = 16
"""Record batches of a shard that are measured, at most: a column's share varies little between them."""
HEADERS = "record batch headers"
"""What is stored beside the values: names, places and checksums of the columns, once for every record batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnSizes:
    """shares: column, or HEADERS, -> its share of all stored bytes, in stored order; total_bytes: of all shards."""

    shares: dict[str, float]
    total_bytes: int

    def bytes_of(self, name: str) -> float:
        return self.shares[name] * self.total_bytes


def column_sizes(cache: ShardCache) -> ColumnSizes:
    """Measured on evenly spread record batches of a few shards: what a reader of one column alone reads of the file.

    Raises CacheDamaged for a shard that cannot be read, or arrives altered from a store.
    """
    found: Counter[str] = Counter()
    names = [column.name for column in cache.plan.columns()]
    for shard in spread(len(cache.plan.shards), FEW_SHARDS):
        path = str(cache.bring(cache.plan.shards[shard].file))
        batches = spread(cache.plan.num_batches(shard), BATCHES)
        for number, name in enumerate(names):
            with _reading(path) as reads:
                options = pa.ipc.IpcReadOptions(included_fields=[number], use_threads=False)
                file = pa.ipc.open_file(pa.PythonFile(reads, mode="r"), options=options)
                for batch in batches:
                    reads.sizes.clear()
                    file.get_batch(batch)
                    header, *values = reads.sizes
                    found[name] += sum(values)
                    found[HEADERS] += header if number == 0 else 0
    total = sum(found.values())
    shares = {name: found[name] / total for name in (*names, HEADERS)}
    return ColumnSizes(shares=shares, total_bytes=sum(entry.bytes for entry in cache.manifest.entries))


@contextlib.contextmanager
def _reading(path: str) -> Iterator["_Reads"]:
    """The shard at `path`. Raises CacheDamaged if it cannot be read."""
    reads = None
    try:
        with pa.OSFile(path, "rb") as inner:
            reads = _Reads(inner)
            yield reads
    except (pa.ArrowException, OSError) as exc:
        cause = exc if reads is None or reads.error is None else reads.error
        raise CacheDamaged(f"{path}: expected a readable shard, got {first_line(cause)}") from exc


class _Reads(io.RawIOBase):
    """A file that writes down how many bytes each read takes, and the error of a read that failed."""

    def __init__(self, inner: pa.NativeFile) -> None:
        self.inner = inner
        self.sizes: list[int] = []
        self.error: OSError | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            content: bytes = self.inner.read(size)
        except OSError as exc:  # Arrow would pass on its traceback as text
            self.error = exc
            raise
        self.sizes.append(len(content))
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self.inner.seek(offset, whence))

    def tell(self) -> int:
        return int(self.inner.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
