"""Tokenised responses on disk: what a build has read stays in a temporary file, so that memory does not grow with it.

A token takes four bytes there: its id, and whether it trains in the highest bit. A row takes some thirty bytes of
memory. The file lies where temporary files do (TMPDIR) and has no name, so that nothing is left of it, however the
process ends.
"""

import os
import tempfile
import weakref
from array import array
from collections.abc import Sequence
from typing import overload

import numpy as np

from precompute.tokenize import TokenizedResponse
from shards.errors import OptionError

_TRAINS = np.uint32(1 << 31)
_BLOCK_BYTES = 1 << 18


class TokenStore(Sequence[TokenizedResponse]):
    """Rows in the order in which they were appended; each access makes the row anew."""

    def __init__(self) -> None:
        try:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - open for as long as the store is there
        except OSError as exc:
            raise _no_room(exc) from exc
        weakref.finalize(self, self._file.close)
        self._unwritten = bytearray()
        self._ends = array("q", [0])  # tokens up to and with each row
        self._pair_ids, self._starts = array("q"), array("i")
        self._kinds, self._flags = array("B"), array("B")
        self._names: list[str] = []  # of the kinds of responses: what a sample_id has behind the slash

    def append(self, row: TokenizedResponse) -> None:
        """Raises OptionError where temporary files have no room left."""
        name = row.sample_id.removeprefix(f"{row.pair_id}/")
        assert row.sample_id == f"{row.pair_id}/{name}", "a sample_id begins with the number of its row"
        if name not in self._names:
            self._names.append(name)
        words_T = row.input_ids.astype(np.uint32) | np.where(row.loss_mask, _TRAINS, np.uint32(0))
        self._unwritten += words_T.tobytes()
        if len(self._unwritten) >= _BLOCK_BYTES:
            self.flush()
        self._ends.append(self._ends[-1] + len(words_T))
        self._pair_ids.append(row.pair_id)
        self._starts.append(row.response_start)
        self._kinds.append(self._names.index(name))
        self._flags.append(row.chosen | row.truncated << 1 | row.prompt_is_prefix << 2)

    def flush(self) -> None:
        """Write what waits. Raises OptionError where temporary files have no room left."""
        try:
            while self._unwritten:
                del self._unwritten[: self._file.write(self._unwritten)]
        except OSError as exc:
            raise _no_room(exc) from exc

    def __len__(self) -> int:
        return len(self._pair_ids)

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
        start, stop = self._ends[i], self._ends[i + 1]
        words_T = np.frombuffer(os.pread(self._file.fileno(), 4 * (stop - start), 4 * start), np.uint32)
        flags, pair_id = self._flags[i], self._pair_ids[i]
        return TokenizedResponse(
            sample_id=f"{pair_id}/{self._names[self._kinds[i]]}",
            pair_id=pair_id,
            chosen=bool(flags & 1),
            input_ids=(words_T & ~_TRAINS).astype(np.int32),
            response_start=self._starts[i],
            loss_mask=(words_T & _TRAINS).astype(bool),
            truncated=bool(flags & 2),
            prompt_is_prefix=bool(flags & 4),
        )


def _no_room(error: OSError) -> OptionError:
    where = tempfile.gettempdir()
    return OptionError(
        f"TMPDIR: expected room for the tokenised data in {where}, got {error.strerror}; name another folder"
    )
