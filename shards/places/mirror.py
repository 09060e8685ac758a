"""Mirror: the files of a cache in a store, as copies on this machine that arrive when they are needed.

Its folder in the cache_dir is named by the content of the cache's manifest, so two builds that were published under the
same URL are never mixed. The processes of a machine share it: whoever needs a file first downloads it into a file
NAME.part, under a lock on that file, checks it and renames it; the others wait for the lock. What a killed process
leaves is a .part without a lock, which the next one takes over.
"""

import contextlib
import fcntl
import fnmatch
import hashlib
import json
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from shards.errors import CacheDamaged, CacheMissing, OptionError
from shards.files import file_sha256, is_still
from shards.places.room import MARK_FILE, PART, Room, lock, unlock
from shards.places.stores import Store

KEY_LETTERS = 32
WHOLE = "."
"""The name under which a whole folder is held."""
ROUNDS = 100
"""How often a file may be removed by others between two steps of ours, before we give up."""


class Mirror:
    """Copies of a folder of a store. Can be pickled; the holds are not.

    sizes: what the store listed at opening, name -> bytes. expected: name -> (bytes, sha256) of files that are checked
    on arrival; the others must have the listed size.
    """

    def __init__(self, store: Store, room: Room, key: str, evict: str, sizes: Mapping[str, int]) -> None:
        self.store = store
        self.room = room
        self.folder = room.folder / key
        self.sizes = sizes
        self.expected: Mapping[str, tuple[int, str]] = {}
        self._hold_nothing()
        self._mark = json.dumps({"url": str(store.url), "evict": evict}).encode()
        self._evict = evict
        self.require(
            max((size for file, size in sizes.items() if self._removable(file)), default=0), "the largest shard"
        )
        make_folder(self.folder)
        room.knows(self.folder, sizes)
        self.write(MARK_FILE, self._mark)
        if room.limit is None:
            self.hold_all()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_held", "_end")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._hold_nothing()

    def _hold_nothing(self) -> None:
        self._held: dict[str, int] = {}
        self._end = weakref.finalize(self, _let_go, self._held, os.getpid())

    def __str__(self) -> str:
        return str(self.store.url)

    @property
    def limit(self) -> int | None:
        """The most bytes in the cache_dir, or None."""
        return self.room.limit

    def name(self, file: str) -> str:
        """A file as the user knows it, for messages."""
        return f"{self.store.url}/{file}"

    def has(self, file: str) -> bool:
        """Whether a file is on this machine."""
        try:
            return (self.folder / file).stat().st_size == self._bytes(file)
        except FileNotFoundError:
            return False

    def ensure(self, file: str, *, fresh: bool = False) -> Path:
        """A file of the cache on this machine; it is fetched if it is not there. fresh: in any case.

        Raises CacheMissing if the store does not have it, CacheDamaged if it arrives whole but differs from `expected`,
        TransferFailed if it does not arrive, OptionError if there is no room for it.
        """
        path = self.folder / file
        if not fresh and self.has(file):
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)  # its last use, for whoever looks for files to remove
                return path
        if file not in self.expected and file not in self.sizes:
            raise CacheMissing(f"{self}: expected a cache, found no {file}")
        size = self._bytes(file)
        assert size is not None
        return self._arrive(file, size, lambda part: self._fetch(file, part), fresh=fresh)

    def write(self, file: str, content: bytes) -> Path:
        """Put a file here whose content is known already."""
        path = self.folder / file
        if path.exists() and path.stat().st_size == len(content):
            return path
        return self._arrive(file, len(content), lambda part: _overwrite(part, content))

    def hold(self, file: str) -> Path:
        """As `ensure`; nobody removes the file before `release`, or the end of this object."""
        if WHOLE in self._held or file in self._held:
            return self.ensure(file)
        for _ in range(ROUNDS):
            path = self.ensure(file)
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue
            lock(descriptor, fcntl.LOCK_SH)
            if is_still(path, descriptor):
                self._held[file] = descriptor
                return path
            unlock(descriptor)
        raise OptionError(f"cache_limit: expected room for {file} beside what others read, got {self.limit:,} bytes")

    def release(self, file: str) -> None:
        """Let a held file be removed. Does nothing for one that is not held."""
        if (descriptor := self._held.pop(file, None)) is not None:
            unlock(descriptor)

    def hold_all(self) -> None:
        """Keep every file of this mirror as long as this object lives."""
        if WHOLE not in self._held:
            self._held[WHOLE] = os.open(self.folder, os.O_RDONLY)
            lock(self._held[WHOLE], fcntl.LOCK_SH)

    def needed(self, shard_bytes: int) -> int:
        """The limit with which shards of so many bytes in all can be here at once, beside the files that stay."""
        stay = sum(size for file, size in self.sizes.items() if not self._removable(file))
        return shard_bytes + stay + len(self._mark)

    def require(self, shard_bytes: int, what: str) -> None:
        """Raise OptionError, with the number that is needed, if the limit has no room for `shard_bytes`."""
        needed = self.needed(shard_bytes)
        if self.limit is not None and self.limit < needed:
            raise OptionError(f"cache_limit: expected {needed:,} bytes or more for {what}, got {self.limit:,}")

    def altered(self, file: str) -> str | None:
        """What is wrong with the copy of a checked file on this machine; None if it is as it arrived."""
        path, (_, sha256) = self.folder / file, self.expected[file]
        if not path.exists() or (found := file_sha256(path)) == sha256:
            return None
        return f"{path}: expected the copy of {self.name(file)} as it arrived, got sha256 {found}; remove it"

    def _removable(self, file: str) -> bool:
        return fnmatch.fnmatchcase(file, self._evict)

    def _bytes(self, file: str) -> int | None:
        return self.expected[file][0] if file in self.expected else self.sizes.get(file)

    def _arrive(self, file: str, size: int, fill: Callable[[Path], None], *, fresh: bool = False) -> Path:
        """Make a file, unless another process has made it before we have the lock. fresh: make it in any case."""
        path, part = self.folder / file, self.folder / f"{file}{PART}"
        with self._standing(), _locked_part(part) as descriptor:
            old = path.stat().st_size if path.exists() else 0
            if path.exists() and old == size and not fresh:
                return path
            try:
                self.room.reserve(part, descriptor, size)
                fill(part)
                os.fsync(descriptor)
                part.replace(path)
                self.room.give_back(old)
            except BaseException:
                left = os.fstat(descriptor).st_size
                part.unlink(missing_ok=True)
                self.room.give_back(left)
                raise
        return path

    @contextlib.contextmanager
    def _standing(self) -> Iterator[None]:
        """Raise CacheMissing where a file cannot be found because somebody removed the whole folder."""
        try:
            yield
        except FileNotFoundError as exc:
            if self.folder.is_dir():
                raise
            raise CacheMissing(
                f"cache_dir: expected {self.folder} with the copies of {self} as long as this process runs, found none"
            ) from exc

    def _fetch(self, file: str, part: Path) -> None:
        """Fetch a file into `part`. One that arrives with another content is tried once more."""
        fault = ""
        for _ in range(2):
            self.store.fetch(file, part)
            if not (fault := self._fault(file, part)):
                return
        raise CacheDamaged(f"{self.name(file)}: {fault}, twice")

    def _fault(self, file: str, part: Path) -> str:
        """How a file that has arrived differs from what is expected, in words."""
        size, found = self._bytes(file), part.stat().st_size
        if found != size:
            return f"expected {size} bytes, got {found}"
        if file in self.expected and (sha256 := file_sha256(part)) != self.expected[file][1]:
            return f"expected sha256 {self.expected[file][1]}, got {sha256}"
        return ""


def open_mirror(store: Store, room: Room, *, names: str, evict: str) -> Mirror:
    """The mirror of a folder of a store, with its file `names` (the manifest), by whose content it is known.

    evict: pattern of the files that may be removed to make room. Two requests: the file, and a list of all.
    Raises CacheMissing if there is no such file.
    """
    content, sizes = store.read(names), store.sizes()
    mirror = Mirror(store, room, hashlib.sha256(content).hexdigest()[:KEY_LETTERS], evict, sizes)
    mirror.write(names, content)
    return mirror


def make_folder(folder: Path) -> None:
    """Make a folder of the cache_dir. Raises OptionError if that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OptionError(f"cache_dir: expected a folder to write to, got {folder} ({exc.strerror})") from exc


def _let_go(held: dict[str, int], process: int) -> None:
    """End all holds. A forked process only closes its copies: the locks are its parent's."""
    for descriptor in held.values():
        if os.getpid() == process:
            unlock(descriptor)
        else:
            os.close(descriptor)
    held.clear()


@contextlib.contextmanager
def _locked_part(part: Path) -> Iterator[int]:
    """The open file `part`, for this process alone; waits for another one that is at work on it."""
    for _ in range(ROUNDS):
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            lock(descriptor, fcntl.LOCK_EX)
            if is_still(part, descriptor):  # else the other one has renamed or removed it
                yield descriptor
                if is_still(part, descriptor):  # the file itself has come another way
                    part.unlink()
                return
        finally:
            unlock(descriptor)
    raise OptionError(f"cache_dir: expected to lock {part}, which others removed {ROUNDS} times")


def _overwrite(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()
