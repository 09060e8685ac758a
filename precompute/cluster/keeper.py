"""Keeper: what the workers of one machine share: the tokenised rows, and what takes long to find out."""

import functools
import hashlib
import os
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from precompute.cluster.answers import Refusal, Result, answer
from precompute.tokens.token_store import RowTable, TokenStore
from shards.errors import DataError

PIECE_BYTES = 1 << 26
"""Bytes of the tokens that are sent at a time; Ray's object store holds one such piece."""

SECONDS_BETWEEN_QUESTIONS = 0.5


class Keeper:
    """An actor without resources, one on each machine with workers.

    The tokens are in a file without a name. On the driver's machine the workers open the driver's; elsewhere the keeper
    receives its bytes once, and they open the keeper's. It imports none of the libraries of models: that takes seconds.
    """

    def __init__(self) -> None:
        self._known: dict[str, bytes] = {}
        self._finders: dict[str, int] = {}
        self._store: TokenStore | None = None
        self._digest = hashlib.sha256()

    def ask(self, name: str, pid: int) -> bytes | bool:
        """What was found out, if it was; else whether the worker that asks is to find it out. See `once`."""
        if name in self._known:
            return self._known[name]
        finder = self._finders.setdefault(name, pid)
        if finder != pid and not _runs(finder):
            finder = self._finders[name] = pid
        return finder == pid

    def keep(self, name: str, found: bytes) -> None:
        """What the worker that was to find it out has found."""
        self._known[name] = found

    def alive(self) -> None:
        """An answer shows it."""

    def opens(self, table: RowTable) -> bool:
        """Whether the driver's file is visible on this machine."""
        return TokenStore.opened(table) is not None

    def begin(self, table: RowTable) -> Refusal | None:
        """Make room for the bytes of a table."""

        def begin() -> None:
            self._store, self._digest = TokenStore(replace(table, place=None)), hashlib.sha256()

        return answer(begin)

    def receive(self, piece: bytes) -> Refusal | None:
        """Keep the next piece."""
        assert self._store is not None
        self._digest.update(piece)
        return answer(functools.partial(self._store.write_bytes, piece))

    def end(self, sha256: str) -> RowTable | Refusal:
        """The table with the place of the file. A Refusal if the bytes are not the driver's."""
        assert self._store is not None
        if (found := self._digest.hexdigest()) != sha256:
            error = DataError(f"data.tokens: expected bytes with sha256 {sha256}, got {found}")
            return Refusal.of(error)
        self._store.finish()
        return self._store.table


def once(ray: Any, keeper: Any, name: str, work: Callable[[], Result]) -> Result | Refusal:
    """The result of `work`, or its Refusal: one of the workers of the keeper's machine runs it, and the others wait."""
    while not isinstance(found := ray.get(keeper.ask.remote(name, os.getpid())), bytes):
        if found:
            ray.get(keeper.keep.remote(name, pickle.dumps(answer(work))))
        else:
            time.sleep(SECONDS_BETWEEN_QUESTIONS)
    known: Result | Refusal = pickle.loads(found)
    return known


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's process has the number
        return False
    return True


def tokens_on(ray: Any, keeper: Any, store: TokenStore) -> RowTable | Refusal:
    """The table that workers of the keeper's machine open; the bytes are sent there if the driver's are not visible."""
    if ray.get(keeper.opens.remote(store.table)):
        return store.table
    refusal, digest = ray.get(keeper.begin.remote(store.table)), hashlib.sha256()
    for piece in _pieces(store):
        if refusal is not None:
            break
        digest.update(piece)
        refusal = ray.get(keeper.receive.remote(piece))
    found: RowTable | Refusal = refusal or ray.get(keeper.end.remote(digest.hexdigest()))
    return found


def _pieces(store: TokenStore) -> Iterator[bytes]:
    for start in range(0, store.table.num_bytes, PIECE_BYTES):
        yield store.read_bytes(start, PIECE_BYTES)
