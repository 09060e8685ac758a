"""Runs a command in a fork, watched or not, from an empty folder or from what is there."""

import importlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stress import forked
from stress.faults.calls import NUMBERS, Call
from stress.faults.commands import COMMANDS, Command, Places, make_inputs
from stress.faults.judge import Undisturbed, contents, is_stable
from stress.faults.watched import Watched, why_not

SECONDS = 120.0


class NotHere(Exception):
    """System calls cannot be watched on this machine."""


@dataclass(kw_only=True)
class Runs:
    """Runs of commands in the folders of a campaign."""

    places: Places
    ground: Path

    @classmethod
    def prepare(cls, ground: Path, names: Sequence[str], make: Callable[[Places], object] = make_inputs) -> "Runs":
        """make: makes the inputs, in a fork."""
        if (reason := why_not()) is not None:
            raise NotHere(reason)
        places = Places.under(ground)
        places.inputs.mkdir()
        runs = cls(places=places, ground=ground)
        for module in [module for name in names for module in COMMANDS[name].imports]:
            importlib.import_module(module)
        made = forked.run(lambda: (make(places), None)[1], ground / "log")
        assert made.code == 0, made.err
        return runs

    @property
    def roots(self) -> list[Path]:
        return [self.places.here, self.places.inputs, self.places.tmp]

    def clear(self) -> None:
        for folder in (self.places.here, self.places.tmp):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()

    def plain(self, command: Command, before: Callable[[], object] = lambda: None) -> forked.Ended:
        """Run without watching. before: done in the fork first."""
        return forked.run(lambda: (before(), command.run(self.places))[1], self.ground / "log", SECONDS)

    def watched(
        self, command: Command, decide: Callable[[Call], int | None], names: Sequence[str] = tuple(NUMBERS)
    ) -> forked.Ended:
        """Run; `decide` is asked about each of these calls on a file of the campaign's folders."""
        watched, log = Watched(names), self.ground / "log"
        until = time.monotonic() + SECONDS

        def asked(call: Call) -> int | None:
            return decide(call) if any(Path(call.path).is_relative_to(root) for root in self.roots) else None

        pid = forked.start(lambda: (watched.begin(), command.run(self.places))[1], log)
        watched.answer(asked, until, time.monotonic)
        return forked.wait(pid, log, max(1.0, until - time.monotonic()))

    def undisturbed(self, command: Command) -> tuple[Undisturbed, list[Call]]:
        """What a command leaves and which calls it makes; files that two runs write differently are not compared."""
        calls: list[Call] = []
        ends = []
        for run in (lambda: self.plain(command), lambda: self.watched(command, lambda call: calls.append(call))):
            self.clear()
            ended = run()
            assert ended.code == 0, f"{command.name}: {ended.err}"
            ends.append((contents(self.places.here), ended.err.splitlines()))
        (one, said), (other, said_again) = ends
        assert one.keys() == other.keys(), f"{command.name}: {one.keys() ^ other.keys()}"
        same = {path: found if found == other[path] and is_stable(path) else None for path, found in one.items()}
        written = sum(path.stat().st_size for path in self.places.here.rglob("*") if path.is_file())
        return Undisturbed(contents=same, lines=frozenset([*said, *said_again]), bytes=written), calls


def kind_of(call: Call) -> str:
    """openat is two kinds: to read, and to write."""
    return f"{call.name} to write" if call.name in ("open", "openat") and call.writes else call.name
