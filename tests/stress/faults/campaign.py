"""Faults: every call about files fails once, disks are full, folders vanish, memory ends, in every command."""

import contextlib
import errno
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from stress.campaign import Campaign, Outcome, held, hung, missed
from stress.faults import defects
from stress.faults.calls import NUMBERS, Call
from stress.faults.cases import Fault, Limit, faults_of, limits_of
from stress.faults.commands import COMMANDS, Places, make_inputs
from stress.faults.judge import Undisturbed, half, names_of, unlike, wrong_end, wrong_interruption
from stress.faults.limits import limited
from stress.faults.runs import Runs, kind_of
from stress.forked import Ended

WRITING = tuple(name for name in NUMBERS if name not in ("read", "pread64", "readv", "getdents64", "mmap"))


class Faults(Campaign):
    name, unit = "faults", "faults"
    defects: ClassVar = defects.DEFECTS

    def __init__(
        self,
        ground: Path,
        seed: int,
        commands: Sequence[str] = tuple(COMMANDS),
        make: Callable[[Places], object] = make_inputs,
    ) -> None:
        """Raises NotHere where system calls cannot be watched."""
        self.seed = seed
        self.runs = Runs.prepare(ground, commands, make)
        self.undisturbed: dict[str, Undisturbed] = {}
        self.cases: list[Fault | Limit] = []
        for name in commands:
            self.undisturbed[name], calls = self.runs.undisturbed(COMMANDS[name])
            self.cases += [*faults_of(name, calls, seed), *limits_of(name, self.undisturbed[name].bytes)]

    def __len__(self) -> int:
        return len(self.cases)

    def case(self, number: int) -> Outcome:
        case = self.cases[number]
        self.runs.clear()
        if isinstance(case, Limit):
            return self._limit(case)
        at = At(case, self.runs.places.here)
        names = [case.kind.removesuffix(" to write")] if case.mode == "once" else WRITING
        ended = self.runs.watched(COMMANDS[case.command], at, names)
        what = f"{case.mode}: {at.call.name} of {at.call.path}" if at.call else "no call"
        if case.mode == "stopped":
            wrong = wrong_interruption(ended, self.undisturbed[case.command]) if ended.code else None
        else:
            places = self._names(at.call) + (["memory:"] if case.code == errno.ENOMEM else [])
            if case.mode != "once":  # what fails next is another call
                places += [f"{self.runs.places.here}/", f"{self.runs.places.tmp}"]
            wrong = wrong_end(ended, self.undisturbed[case.command], places) if ended.code else None
        if not ended.code and at.call is not None and case.mode == "once" and at.call.name in ("fsync", "fdatasync"):
            wrong = "not on the disk, and nothing said so"
        return self._judged(case, ended, f"{what}: {wrong}" if wrong else "", what, at.there)

    def _names(self, call: Call | None) -> list[str]:
        """What a line may name for a call: a copy in the folder for temporary files is also told by its original."""
        if call is None:
            return [str(self.runs.places.here)]
        path, places = Path(call.path), self.runs.places
        originals = [str(p) for p in places.inputs.rglob(path.name)] if path.is_relative_to(places.tmp) else []
        return [*names_of(call.path, self.runs.roots), *originals]

    def _limit(self, case: Limit) -> Outcome:
        places = self.runs.places
        with limited(case, places.here) as before:
            ended = self.runs.plain(COMMANDS[case.command], before)
            roots = [f"{root}" for root in self.runs.roots]
            wrong = None
            if ended.code:
                anywhere = ["memory:"] if case.mode == "memory" else [*roots, *(f"{root}/" for root in roots)]
                wrong = wrong_end(ended, self.undisturbed[case.command], anywhere)
            wrong = wrong or next(half(places.here, self.undisturbed[case.command]), None)
        return self._judged(case, ended, wrong or "", f"{case.mode} of {case.size}", frozenset())

    def _judged(self, case: Fault | Limit, ended: Ended, wrong: str, what: str, there: frozenset[str]) -> Outcome:
        """After a command that ended with an error, the same one must end as if nothing had been."""
        undisturbed, here, kind = self.undisturbed[case.command], self.runs.places.here, str(case)
        if ended.code is None:
            return hung(kind, f"{what}: no end")
        if wrong:
            return missed(kind, wrong)
        if not ended.code and case.mode == "gone":
            return held(kind)  # what was removed had been whole, or was made again
        if ended.code:
            for fault in half(here, undisturbed):
                return missed(kind, f"{what}: {fault}")
            kept = there & undisturbed.contents.keys() if case.mode != "gone" else frozenset()
            if lost := [file for file in sorted(kept) if not (here / file).exists()]:
                return missed(kind, f"{what}: lost {lost}")
            ended = self.runs.plain(COMMANDS[case.command])
            if ended.code is None:
                return hung(kind, f"{what}: the command after it did not end")
            if ended.code:
                return missed(kind, f"{what}: the command after it ended with {ended.code}: {ended.err[-600:]}")
        for fault in unlike(here, undisturbed, temporary=case.mode in ("ever", "gone")):
            return missed(kind, f"{what}: {fault}")
        return held(kind)


class At:
    """Does what a fault says at its call, and remembers the call and the files that were there."""

    def __init__(self, fault: Fault, here: Path) -> None:
        self.fault, self.here = fault, here
        self.seen = 0
        self.call: Call | None = None
        self.there: frozenset[str] = frozenset()

    def __call__(self, call: Call) -> int | None:
        if not (kind_of(call) == self.fault.kind if self.fault.mode == "once" else call.writes):
            return None
        self.seen += 1
        if self.seen - 1 < self.fault.number or (self.seen - 1 > self.fault.number and self.fault.mode != "ever"):
            return None
        if self.call is None:
            self.call = call
            self.there = frozenset(str(path.relative_to(self.here)) for path in self.here.rglob("*") if path.is_file())
        match self.fault.mode:
            case "gone":
                for path in self.here.iterdir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            case "stopped":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(call.pid, signal.SIGINT)
            case _:
                return self.fault.code
        return None
