"""The law of order: what a power loss may not take. From the calls of a run that nothing disturbed.

A name is given (rename, link) only to what is on the disk. A marker, which says that other files are complete, is
given its name when all of them are on the disk. Nothing is removed before the names given until then, and new folders,
are on the disk.
At the end of the command everything is.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath

from stress.kills.syscalls.calls import DATA, FLUSHES, Call

UNSIGNED = "checkpoint-"
"""Beginning of the names of folders whose files count when a marker says so, however they got their names."""
LOCK = "_aligndistil-lock"
"""Goes with its command, and is worth nothing after it."""
STAGED = "model"
"""A folder that gets another name when it is whole; until then its files do not count, as in a hidden one."""


class Disk:
    """What has been written and is not surely on the disk.

    content   files whose bytes are not flushed
    names     folders that have got an entry since they were flushed
    given     those of them in which a name was given, or a folder made
    """

    def __init__(self, folder: str, markers: Iterable[str]) -> None:
        self.folder, self.markers = folder, frozenset(markers)
        self.content: set[str] = set()
        self.names: set[str] = set()
        self.given: set[str] = set()

    def faults(self, calls: Sequence[Call]) -> Iterator[str]:
        for call in calls:
            if call.well:
                yield from self._take(call)
        for what, paths in (("content", self.content), ("names", self.names)):
            for path in sorted(paths):
                yield f"at the end, {what} of {self._short(path)} not flushed"

    def _take(self, call: Call) -> Iterator[str]:
        *_, path = call.paths
        if PurePath(path).name == LOCK:
            return
        if call.name in DATA or call.name in ("truncate", "ftruncate", "fallocate"):
            self.content.add(path)
        elif call.name in FLUSHES:
            self._forget(path)
        elif call.name == "open":
            self._named(path, self.names)
        elif call.name == "mkdir":
            self._named(path, self.names, self.given)
        elif call.name in ("rename", "link"):
            yield from self._given(call.paths[0], path)
            if call.name == "rename":
                self.content = {_moved(one, *call.paths) for one in self.content}
                self.names = {_moved(one, *call.paths) for one in self.names}
                self.given = {_moved(one, *call.paths) for one in self.given}
            self._named(path, self.names, self.given)
        elif call.name in ("unlink", "rmdir"):
            yield from self._removed(path)

    def _given(self, source: str, path: str) -> Iterator[str]:
        if not self._is_kept(path):
            return
        marks = PurePath(path).name in self.markers
        if not marks and PurePath(path).parent.name.startswith(UNSIGNED):
            return
        for dirty in sorted(self.content | self.names):
            inside = f"{dirty}/".startswith(f"{source}/")
            if inside or (marks and dirty in self.content and PurePath(path).parent in PurePath(dirty).parents):
                yield f"{self._short(path)} given its name before {self._short(dirty)} was flushed"

    def _removed(self, path: str) -> Iterator[str]:
        self._forget(path)
        if self._is_kept(path):
            for folder in filter(self._is_kept, sorted(self.given)):
                yield f"{self._short(path)} removed before the names in {self._short(folder)} were flushed"

    def _forget(self, path: str) -> None:
        for found in (self.content, self.names, self.given):
            found.discard(path)

    def _named(self, path: str, *found: set[str]) -> None:
        """A new name matters if it stays: a temporary one is given another later, or removed."""
        if not (name := PurePath(path).name).startswith(".") and name not in (STAGED, LOCK):
            for names in found:
                names.add(str(PurePath(path).parent))

    def _is_kept(self, path: str) -> bool:
        parts = PurePath(path.removeprefix(self.folder)).parts
        return not any(part.startswith(".") or part in (STAGED, LOCK) for part in parts)

    def _short(self, path: str) -> str:
        return path.removeprefix(f"{PurePath(self.folder).parent}/")


def _moved(path: str, old: str, new: str) -> str:
    return new + path[len(old) :] if f"{path}/".startswith(f"{old}/") else path
