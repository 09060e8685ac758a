"""Tokenised responses on disk: what a build has read stays in a temporary file, so that memory does not grow with it.

A token takes four bytes there: its id, and whether it trains in the highest bit. A row takes some thirty bytes of
memory. The file lies where temporary files do (TMPDIR) and has no name, so that nothing is left of it, however the
process ends. Another process of this machine can open it while this one lives (`opened`).
"""

import os
import platform
import tempfile
import weakref
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import overload

import numpy as np

from precompute.tokenized import TokenizedResponse
from shards.errors import OptionError

_TRAINS_BIT = np.uint32(31)
_TRAINS = np.uint32(1 << 31)
_BLOCK_BYTES = 1 << 18


@dataclass(slots=True, kw_only=True)
class RowTable:
    """All but the tokens, and where those lie.

    ends: tokens up to and with each row, after a 0. names: of the kinds of responses, which a sample_id has behind the
    slash; kinds counts in them. place: machine, path, device and inode of the file.
    """

    ends: array = field(default_factory=lambda: array("q", [0]))
    pair_ids: array = field(default_factory=lambda: array("q"))
    starts: array = field(default_factory=lambda: array("i"))
    kinds: array = field(default_factory=lambda: array("B"))
    flags: array = field(default_factory=lambda: array("B"))
    names: list[str] = field(default_factory=list)
    place: tuple[str, str, int, int] | None = None

    def append(self, row: TokenizedResponse) -> None:
        name = row.sample_id.removeprefix(f"{row.pair_id}/")
        assert row.sample_id == f"{row.pair_id}/{name}", "a sample_id begins with the number of its row"
        if name not in self.names:
            self.names.append(name)
        self.ends.append(self.ends[-1] + len(row.input_ids))
        self.pair_ids.append(row.pair_id)
        self.starts.append(row.response_start)
        self.kinds.append(self.names.index(name))
        self.flags.append(row.chosen | row.truncated << 1 | row.prompt_is_prefix << 2)

    @property
    def num_bytes(self) -> int:
        return 4 * self.ends[-1]


class TokenStore(Sequence[TokenizedResponse]):
    """Rows in the order in which they were appended; each access makes the row anew."""

    def __init__(self, table: RowTable | None = None, file: FileIO | None = None) -> None:
        """Without arguments an empty one; else rows that another store has written."""
        self.table = RowTable() if table is None else table
        self._file = _temporary() if file is None else file
        weakref.finalize(self, self._file.close)
        self._unwritten = bytearray()

    @classmethod
    def opened(cls, table: RowTable) -> "TokenStore | None":
        """The rows of a store of another process; None where its file cannot be seen from here."""
        if table.place is None or table.place[0] != platform.node():
            return None
        try:
            file = Path(table.place[1]).open("rb", buffering=0)  # noqa: SIM115 - open for as long as the store is there
        except OSError:
            return None
        found = os.fstat(file.fileno())
        if (found.st_dev, found.st_ino, found.st_size) != (*table.place[2:], table.num_bytes):
            file.close()
            return None
        return cls(table, file)

    def append(self, row: TokenizedResponse) -> None:
        """Raises OptionError where temporary files have no room left."""
        words_T = row.input_ids.astype(np.uint32) | row.loss_mask.astype(np.uint32) << _TRAINS_BIT
        self._unwritten += words_T.tobytes()
        if len(self._unwritten) >= _BLOCK_BYTES:
            self.flush()
        self.table.append(row)

    def flush(self) -> None:
        """Write what waits. Raises OptionError where temporary files have no room left."""
        self.write_bytes(self._unwritten)
        self._unwritten.clear()

    def finish(self) -> None:
        """Write what waits, and say where the file lies; a store that others open has no more rows to come."""
        self.flush()
        found, path = os.fstat(self._file.fileno()), f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        self.table.place = platform.node(), path, found.st_dev, found.st_ino

    def read_bytes(self, start: int, count: int) -> bytes:
        return os.pread(self._file.fileno(), count, start)

    def write_bytes(self, data: bytes | bytearray) -> None:
        """Raises OptionError where temporary files have no room left."""
        try:
            done = 0
            while done < len(data):
                done += os.write(self._file.fileno(), memoryview(data)[done:])
        except OSError as exc:
            raise _no_room(exc) from exc

    def __len__(self) -> int:
        return len(self.table.pair_ids)

    @overload
    def __getitem__(self, index: int) -> TokenizedResponse: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenizedResponse]: ...
    def __getitem__(self, index: int | slice) -> TokenizedResponse | list[TokenizedResponse]:
        if isinstance(index, slice):
            return [self._row(i) for i in range(*index.indices(len(self)))]
        return self._row(range(len(self))[index])

    def _row(self, i: int) -> TokenizedResponse:
        if self._unwritten:
            self.flush()
        table = self.table
        start, stop = table.ends[i], table.ends[i + 1]
        words_T = np.frombuffer(self.read_bytes(4 * start, 4 * (stop - start)), np.uint32)
        flags, pair_id = table.flags[i], table.pair_ids[i]
        return TokenizedResponse(
            sample_id=f"{pair_id}/{table.names[table.kinds[i]]}",
            pair_id=pair_id,
            chosen=bool(flags & 1),
            input_ids=(words_T & ~_TRAINS).astype(np.int32),
            response_start=table.starts[i],
            loss_mask=(words_T & _TRAINS).astype(bool),
            truncated=bool(flags & 2),
            prompt_is_prefix=bool(flags & 4),
        )


def _temporary() -> FileIO:
    try:
        return tempfile.TemporaryFile(buffering=0)
    except OSError as exc:
        raise _no_room(exc) from exc


def _no_room(error: OSError) -> OptionError:
    where = os.environ.get("TMPDIR", tempfile.gettempdir())
    return OptionError(
        f"TMPDIR: expected room for the tokenised data in {where}, got {error.strerror}; name another folder"
    )
