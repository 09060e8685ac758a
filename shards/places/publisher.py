"""Publisher: makes finished files of this machine visible in a store. A file there is whole or absent."""

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from shards.errors import CacheConflict, TransferFailed
from shards.files import about, temporary_name
from shards.places.hub import HubStore
from shards.places.stores import Store

SECONDS_BETWEEN_COMMITS = 60
"""The hub takes about a hundred commits an hour of one repository."""
MOST_FILES, MOST_BYTES = 500, 5 << 30
"""Of one commit."""
ATTEMPTS = 5
"""Of a commit while others commit to the same repository."""
PIECE_BYTES = 1 << 22


class _Given(NamedTuple):
    """A file that waits for the next commit. drop: remove the copy of this machine then."""

    file: str
    path: Path
    drop: bool


class Publisher:
    """Puts files into a store, each only if its name is free there. Can be pickled; threads may share it.

    Equal content under the name counts as done: a task was repeated, or a request was sent again because its answer was
    lost. Other content is refused.

    An object store gets one request a file, at once. A hub repository gets commits of many files: after `seconds`, at
    `settle`, or with a `last` file.
    """

    def __init__(self, store: Store, seconds: float = SECONDS_BETWEEN_COMMITS) -> None:
        self.store = store
        self.seconds = seconds
        self._waiting: list[_Given] = []
        self._committed_at = time.monotonic()
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        assert not self._waiting, "files wait for a commit of this process"
        return Publisher, (self.store, self.seconds)

    def publish(self, file: str, path: Path, *, drop: bool = False, last: bool = False) -> None:
        """Make a finished file visible. Raises CacheConflict if the store has other content of this name.

        drop: remove the copy of this machine, once the store has it.
        last: the file says something about others: those given before are visible no later than it.
        """
        given = _Given(file, path, drop)
        if isinstance(self.store, HubStore):
            self._commit_later(given, last)
        elif self.store.put(file, path) or self._is_there(given):
            _drop([given])

    def settle(self) -> None:
        """Return when everything that was given is visible."""
        with self._lock:
            if self._waiting:
                assert isinstance(self.store, HubStore)
                self.store.commit(_contents(self._waiting))
                self._done()

    def _commit_later(self, given: _Given, last: bool) -> None:
        with self._lock:
            if last:
                self._commit_on_top(given)
                return
            self._waiting.append(given)
            waited = time.monotonic() - self._committed_at >= self.seconds
            if waited or len(self._waiting) >= MOST_FILES or _bytes(self._waiting) >= MOST_BYTES:
                self.settle()

    def _commit_on_top(self, given: _Given) -> None:
        """Commit a file and those that wait, on top of a commit in which nothing has its name."""
        assert isinstance(self.store, HubStore)
        for _ in range(ATTEMPTS):
            if given.file in self.store.newest():
                self.settle()
                self._is_there(given)
                return
            if self.store.commit(_contents([*self._waiting, given]), on_top=True):
                self._waiting.append(given)
                self._done()
                return
        raise TransferFailed(
            f"{self.store.url}: expected to commit {given.file}, got in {ATTEMPTS} tries another's commit"
        )

    def _done(self) -> None:
        _drop(self._waiting)
        self._waiting, self._committed_at = [], time.monotonic()

    def _is_there(self, given: _Given) -> bool:
        """True. Raises CacheConflict unless the store has equal content. It is read: an ETag need not be a hash."""
        if not is_same(self.store, given.file, given.path):
            expected = f"none, or one with the same {given.path.stat().st_size:,} bytes"
            raise CacheConflict(f"{self.store.url}/{given.file}: expected {expected}, found another file")
        return True


def is_same(store: Store, file: str, path: Path) -> bool:
    """Whether the store has the content of a file of this machine under this name."""
    there = temporary_name(path.parent, file, ".there")
    try:
        bring(store, file, there)
        return there.stat().st_size == path.stat().st_size and _equal(there, path)
    finally:
        there.unlink(missing_ok=True)


def bring(store: Store, file: str, path: Path) -> None:
    """Fetch a file of the store to `path`, where it appears when it is whole."""
    temporary = temporary_name(path.parent, path.name, f"-{threading.get_ident()}")
    temporary.touch()
    try:
        store.fetch(file, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _equal(one: Path, other: Path) -> bool:
    with about(one), one.open("rb") as left, about(other), other.open("rb") as right:
        while (piece := left.read(PIECE_BYTES)) == right.read(PIECE_BYTES):
            if not piece:
                return True
    return False


def _contents(given: list[_Given]) -> Mapping[str, Path]:
    return {one.file: one.path for one in given}


def _bytes(given: list[_Given]) -> int:
    return sum(one.path.stat().st_size for one in given)


def _drop(given: list[_Given]) -> None:
    for one in given:
        if one.drop:
            one.path.unlink(missing_ok=True)  # a folder may have renamed it
