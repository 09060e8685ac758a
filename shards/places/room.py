"""Room: the folder of this machine that holds copies of what lies in stores, and its limit.

It has a folder for every cache, with a file mirror.json that says what the copies are of. The limit is for all of them
together. What may be removed is a copy whose store lists it with the same size, the one that was used longest ago
first, unless a process holds it: a lock (flock) on the file, or on its whole folder. Locks end with their process.

The bytes in use are counted in one small file, which is locked while room is made. A process that is killed can only
leave the count too high, and the files are counted again before any is removed.
"""

import contextlib
import errno
import fcntl
import fnmatch
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from shards import strict_json
from shards.errors import AlignDistilError, OptionError
from shards.files import is_still, read_regular
from shards.places.objects import PATIENCE
from shards.places.stores import store_of
from shards.places.url import parse_url

MARK_FILE = "mirror.json"
MAX_MARK_BYTES = 2**16
COUNT_FILE = ".used"
PART = ".part"
SLACK = 16
"""A sixteenth of the limit more than needed is freed, so that not every shard costs a count of all files."""

UNITS = {"": 1, "B": 1} | {f"{letter}B": 1000 ** (i + 1) for i, letter in enumerate("KMGTP")}
UNITS |= {f"{letter}IB": 1024 ** (i + 1) for i, letter in enumerate("KMGTP")}
IMPATIENCE = replace(PATIENCE, connect=5, read=10, whole=60, tries=1)
"""For stores of other caches, which are asked while other processes wait for room."""


class Copy(NamedTuple):
    """A file that may be removed: when it was last used, seconds; its bytes; where it is."""

    used: float
    size: int
    path: Path


class Room:
    """A cache_dir. limit: the most bytes in it, or None. Can be pickled."""

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.folder = folder
        self.limit = limit
        self._stored: dict[str, Mapping[str, int]] = {}

    @classmethod
    def of(cls, cache_dir: str | None = None, cache_limit: str | int | None = None) -> "Room":
        """The room of the flags --cache_dir and --cache_limit. Raises OptionError."""
        return cls(Path(cache_dir) if cache_dir else default_folder(), parse_bytes(cache_limit))

    def knows(self, folder: Path, sizes: Mapping[str, int]) -> None:
        """Take note of what the store of a folder lists: name -> bytes."""
        self._stored[folder.name] = sizes

    def reserve(self, part: Path, descriptor: int, size: int) -> None:
        """Give the open file `part` the length `size`, and remove copies until all fit under the limit.

        Raises OptionError if the limit is too low, or the disk full.
        """
        with self._counted() as count:
            left = os.fstat(descriptor).st_size  # by a killed process; it is counted already
            more = size - left
            used = count.value if count.value is not None else self._all_bytes()
            if self.limit is not None and used + more > self.limit:
                used = count.value = self._freed(more, part)
                self._require_room(used, more, part)
            count.value = used + more
            try:
                _allocate(descriptor, size)
            except OSError as exc:
                count.value = used
                os.ftruncate(descriptor, left)
                if exc.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
                raise OptionError(
                    f"cache_dir: expected {size:,} free bytes in {self.folder}, found a full disk; "
                    "give another --cache_dir, or a --cache_limit"
                ) from exc

    def give_back(self, size: int) -> None:
        """Count `size` bytes less: a file was removed."""
        with self._counted() as count:
            if count.value is not None:
                count.value = max(0, count.value - size)

    @contextlib.contextmanager
    def _counted(self) -> Iterator["_Count"]:
        """The bytes in use, with all other processes kept out; they are written back at the end."""
        descriptor = os.open(self.folder / COUNT_FILE, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            lock(descriptor, fcntl.LOCK_EX)
            count = _Count(descriptor)
            try:
                yield count
            finally:
                count.write()
        finally:
            unlock(descriptor)

    def _all_bytes(self) -> int:
        return sum(entry.stat().st_size for folder in self._folders() for entry in _files(folder))

    def _folders(self) -> Iterator[Path]:
        """The folders of copies; nothing else in the folder is counted or touched."""
        for path in self.folder.iterdir():
            if (path / MARK_FILE).is_file():
                yield path

    def _freed(self, more: int, part: Path) -> int:
        """Remove copies until `more` bytes fit, and a little more. Returns the bytes that are left."""
        assert self.limit is not None
        used, copies = 0, []
        for folder in self._folders():
            mark = read_mark(folder)
            stored = self._sizes(folder, mark)
            for entry in _files(folder):
                found = entry.stat()
                used += found.st_size
                copy = Copy(found.st_mtime, found.st_size, Path(entry.path))
                if copy.path != part and _removable(copy, mark, stored):
                    copies.append(copy)
        for copy in sorted(copies):
            if used + more <= self.limit - self.limit // SLACK:
                break
            if remove_free(copy.path):
                used -= copy.size
        return used

    def _require_room(self, used: int, more: int, part: Path) -> None:
        if self.limit is not None and used + more > self.limit:
            raise OptionError(
                f"cache_limit: expected {used + more:,} bytes or more, {used:,} for what is in use in {self.folder} "
                f"and {more:,} for {part.name.removesuffix(PART)}, got {self.limit:,}"
            )

    def _sizes(self, folder: Path, mark: Mapping[str, str]) -> Mapping[str, int]:
        """What the store of a folder lists; nothing if it does not answer, so that nothing of it is removed."""
        if folder.name not in self._stored:
            try:
                self._stored[folder.name] = store_of(parse_url(mark["url"]), IMPATIENCE).sizes()
            except (AlignDistilError, KeyError):
                self._stored[folder.name] = {}
        return self._stored[folder.name]


class _Count:
    """The bytes in use, as the count file has them; None if it is empty or no number."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        text = os.pread(descriptor, 32, 0)
        self.value: int | None = int(text) if text.strip().isdigit() else None

    def write(self) -> None:
        if self.value is not None:
            os.pwrite(self._descriptor, f"{self.value:<31}\n".encode(), 0)


def default_folder() -> Path:
    """$ALIGNDISTIL_CACHE, else aligndistil in $XDG_CACHE_HOME or in ~/.cache."""
    if given := os.environ.get("ALIGNDISTIL_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aligndistil"


def parse_bytes(text: str | int | None) -> int | None:
    """Bytes of a text such as 200GB, 50GiB or 1000000; None for None. Raises OptionError."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(text).strip())
    unit = None if found is None else UNITS.get(found[2].upper())
    if found is None or unit is None or not 1 <= float(found[1]) * unit < 2**63:
        raise OptionError(f"cache_limit: expected bytes, such as 200GB, 50GiB or 1000000000, got {text!r}")
    return int(float(found[1]) * unit)


def read_mark(folder: Path) -> Mapping[str, str]:
    """What the copies in a folder are of: url, and evict, the pattern of names that may be removed."""
    try:
        mark = strict_json.loads(read_regular(folder / MARK_FILE, MAX_MARK_BYTES))
    except (OSError, ValueError):
        return {}
    return mark if isinstance(mark, dict) and all(isinstance(text, str) for text in mark.values()) else {}


def remove_free(path: Path) -> bool:
    """Remove a file, unless a process holds it or its folder, or it is already gone."""
    try:
        folder, descriptor = os.open(path.parent, os.O_RDONLY), os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_still(path, descriptor):
            return False
        path.unlink()
    except BlockingIOError:
        return False
    finally:
        unlock(descriptor)
        unlock(folder)
    return True


def lock(descriptor: int, kind: int) -> None:
    """flock, with a clear error where the file system has none. Raises BlockingIOError, OptionError."""
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        raise
    except OSError as exc:
        raise OptionError(f"cache_dir: expected a file system of this machine with locks, got {exc.strerror}") from exc


def unlock(descriptor: int) -> None:
    """End a lock, also for processes that were forked meanwhile, and close the file."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _removable(copy: Copy, mark: Mapping[str, str], stored: Mapping[str, int]) -> bool:
    name = copy.path.name
    if name.endswith(PART):
        return True
    return fnmatch.fnmatchcase(name, str(mark.get("evict", ""))) and stored.get(name) == copy.size


def _files(folder: Path) -> Iterator[os.DirEntry]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if entry.is_file(follow_symlinks=False))


def _allocate(descriptor: int, size: int) -> None:
    """Give a file a length, with its room on the disk."""
    os.ftruncate(descriptor, size)
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
