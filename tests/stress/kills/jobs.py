"""A job: a command that is killed in a folder of its own, what a kill may leave there, and what has to come out."""

import importlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from stress import forked
from stress.forked import Ended
from stress.kills.commands import Command
from stress.kills.syscalls.calls import Call
from stress.kills.syscalls.steps import namer
from stress.kills.syscalls.tracer import Point, traced

SECONDS = 60.0
"""Of one run; it takes two at most."""


@dataclass(frozen=True, slots=True)
class AtTime:
    """Kill after a share of the time that an undisturbed run takes."""

    share: float


class Job(Protocol):
    """One command with its inputs. A case begins and ends with `clear`."""

    name: str
    steps: Sequence[str]

    def clear(self) -> None: ...

    def run(self, at: Point | AtTime | None) -> Ended: ...

    def before(self) -> Any:
        """What is there before a run, for `went_on`."""

    def left(self) -> str:
        """A fault of what a kill left behind, or ""."""

    def went_on(self, before: Any, ended: Ended) -> str:
        """A fault of how a run went on from what was there, or ""."""

    def other_than_undisturbed(self) -> str:
        """A difference of what is there from what an undisturbed run leaves, or ""."""


@dataclass(slots=True)
class FolderJob:
    """A command that writes to a folder. rules: what it may leave, and where it goes on (`rules.py`)."""

    name: str
    command: Command
    rules: Any
    ground: Path
    seconds: float = 0.0
    whole: dict[str, bytes] = field(default_factory=dict)
    calls: Sequence[Call] = ()
    steps: Sequence[str] = ()

    @property
    def folder(self) -> Path:
        return self.ground / self.name

    @property
    def out(self) -> Path:
        return self.folder / self.command.out

    def prepare(self) -> None:
        """Run it undisturbed: its files, its calls and its time."""
        for module in (self.command.module, *self.command.loads):
            importlib.import_module(module)
        self.clear()
        begun = time.monotonic()
        ended = self.record()
        self.seconds = time.monotonic() - begun
        if ended.code != 0:
            raise RuntimeError(f"{self.name}: expected an undisturbed run, got {ended.err[-2000:]}")
        self.whole = files_of(self.folder)
        name = namer(self.folder)
        self.steps = [name(call) for call in self.calls if call.well]

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    def record(self) -> Ended:
        found = traced(self._run, self.ground / "log", namer(self.folder), None, SECONDS)
        self.calls = found.calls
        return found.ended

    def run(self, at: Point | AtTime | None) -> Ended:
        log = self.ground / "log"
        if isinstance(at, Point):
            return traced(self._run, log, namer(self.folder), at, SECONDS).ended
        pid = forked.start(self._run, log)
        return forked.wait(pid, log, SECONDS) if at is None else forked.killed(pid, log, at.share * self.seconds)

    def before(self) -> Any:
        return self.rules.before(self.out)

    def left(self) -> str:
        fault: str = self.rules.left(self.out, self.whole)
        return fault

    def went_on(self, before: Any, ended: Ended) -> str:
        fault: str = self.rules.went_on(self.out, before, ended.out)
        return fault

    def other_than_undisturbed(self) -> str:
        return difference(files_of(self.folder), self.whole, self.rules.differs)

    def _run(self) -> None:
        self.command.run(self.folder)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def difference(found: dict[str, bytes], whole: dict[str, bytes], differs: Sequence[str] = ()) -> str:
    """The first difference of two folders. differs: names of files that are never the same."""
    if more := sorted(found.keys() - whole.keys()):
        return f"expected nothing else, found {', '.join(more)}"
    if less := sorted(whole.keys() - found.keys()):
        return f"expected {', '.join(less)}, found none"
    other = [name for name in whole if found[name] != whole[name] and Path(name).name not in differs]
    return f"expected the bytes of an undisturbed run, found others in {', '.join(other)}" if other else ""
