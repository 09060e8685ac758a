"""Stores tokenised responses in a temporary file, so that memory does not grow with the data.

A token takes four bytes: its id, and in the highest bit whether it is trained on. A row takes about thirty bytes of
memory. The file is in the folder for temporary files (TMPDIR) and has no name, so it disappears with the process, even
after a kill. Another process of this machine can open it while this one lives (`opened`).
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

from precompute.tokens.tokenized import TokenizedResponse
from shards.errors import OptionError
from shards.files import about

_TRAINS_BIT = np.uint32(31)
_TRAINS = np.uint32(1 << 31)
_BLOCK_BYTES = 1 << 18


@dataclass(slots=True, kw_only=True)
class RowTable:
    """All facts about the rows except the tokens, and where the tokens are.

    ends: a 0, then the number of tokens up to the end of each row. names: the kinds of responses, which follow the
    slash in a sample_id; kinds are indices into names. place: machine, path, device and inode of the file.
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
    """Rows in the order of appending; each access creates the row again."""

    def __init__(self, table: RowTable | None = None, file: FileIO | None = None) -> None:
        """Without arguments an empty store; else the rows that another store has written."""
        self.table = RowTable() if table is None else table
        self._file = _temporary() if file is None else file
        weakref.finalize(self, self._file.close)
        self._unwritten = bytearray()

    @classmethod
    def opened(cls, table: RowTable) -> "TokenStore | None":
        """The rows of a store of another process; None if its file is not visible from here."""
        if table.place is None or table.place[0] != platform.node():
            return None
        try:
            file = Path(table.place[1]).open("rb", buffering=0)  # noqa: SIM115 - stays open with the store
        except OSError:
            return None
        found = os.fstat(file.fileno())
        if (found.st_dev, found.st_ino, found.st_size) != (*table.place[2:], table.num_bytes):
            file.close()
            return None
        return cls(table, file)

    def append(self, row: TokenizedResponse) -> None:
        """Add a row. Raises OptionError if there is no room for temporary files."""
        words_T = row.input_ids.astype(np.uint32) | row.loss_mask.astype(np.uint32) << _TRAINS_BIT
        self._unwritten += words_T.tobytes()
        if len(self._unwritten) >= _BLOCK_BYTES:
            self.flush()
        self.table.append(row)

    def flush(self) -> None:
        """Write buffered tokens. Raises OptionError if there is no room for temporary files."""
        self.write_bytes(self._unwritten)
        self._unwritten.clear()

    def finish(self) -> None:
        """Write buffered tokens and record the place of the file; a store that others open gets no more rows."""
        self.flush()
        found, path = os.fstat(self._file.fileno()), f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        self.table.place = platform.node(), path, found.st_dev, found.st_ino

    def read_bytes(self, start: int, count: int) -> bytes:
        with about(tempfile.gettempdir()):
            return os.pread(self._file.fileno(), count, start)

    def write_bytes(self, data: bytes | bytearray) -> None:
        """Write raw bytes. Raises OptionError if there is no room for temporary files."""
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
