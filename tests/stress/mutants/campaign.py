"""Mutants: batches of mutants of one kind of file, and a table of hostile files, each in a fork that is watched."""

import atexit
import contextlib
import json
import mmap
import random
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from stress import forked
from stress.campaign import Campaign, Outcome, held, hung, missed
from stress.mutants.defects import DEFECTS
from stress.mutants.guard import SECONDS, Guard
from stress.mutants.mutate import mutant
from stress.mutants.poisons import Ground, passed, places
from stress.mutants.table import table
from stress.mutants.targets import Target, targets

MUTANTS, BATCH = 1_000_000, 1000


class Mutants(Campaign):
    """First come the places of poisoned pickles, then the table, each its own case; then batches of mutants.

    batch   mutants of a case
    """

    name: ClassVar[str] = "mutants"
    unit: ClassVar[str] = f"files and batches of {BATCH:,} mutants"
    defects: ClassVar[Mapping[str, Callable[[], contextlib.AbstractContextManager[object]]]] = DEFECTS
    batch = BATCH

    def __init__(self, ground: Path, seed: int) -> None:
        memory = Path("/dev/shm")  # every mutant is a file
        self.ground = Path(tempfile.mkdtemp(prefix="mutants-", dir=memory if memory.is_dir() else ground))
        atexit.register(shutil.rmtree, self.ground, ignore_errors=True)
        self.seed = seed
        self.targets = targets(self.ground / "given")
        self.table = list(table(self.targets))
        self.poisoned, self.mark, self.work = Ground(ground), ground / "mark", ground / "work"
        self.places = list(places(self.poisoned, self.work, self.mark))
        self.schedule = [target for target in self.targets.values() for _ in range(target.weight)]
        random.Random(seed).shuffle(self.schedule)

    def __len__(self) -> int:
        return len(self.places) + len(self.table) + MUTANTS // BATCH

    def case(self, number: int) -> Outcome:
        if number < len(self.places):
            return self.pickle(number)
        if (row := number - len(self.places)) < len(self.table):
            return self.row(row)
        return self.mutants(row - len(self.table))

    # ---- a poisoned pickle

    def pickle(self, number: int) -> Outcome:
        name, put = self.places[number]
        made = forked.run(self.poisoned.make, self.ground / "log", seconds=600)
        assert made.code == 0, made.err
        self.work.mkdir()
        found = self._told(lambda: passed(put, self.mark), seconds=600)
        shutil.rmtree(self.work)
        shutil.rmtree(self.mark, ignore_errors=True)
        kind = "poisoned pickles"
        return held(kind) if found == "" else missed(kind, f"{name}: {found}")

    # ---- a hostile file

    def row(self, number: int) -> Outcome:
        name, put, work = self.table[number]
        target = self.targets[name.partition(":")[0]]

        def run() -> str | None:
            with contextlib.suppress(Exception):
                target.work()  # imports what it needs
            put()
            return Guard([self.ground]).judge(work)

        found = self._told(run, seconds=6 * SECONDS)
        self._put_back(target)
        kind = "hostile files"
        if found is None:
            return hung(kind, name)
        return held(kind) if found == "" else missed(kind, f"{name}: {found}")

    def _put_back(self, target: Target) -> None:
        file = target.file
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        elif file.is_symlink() or not file.is_file():
            file.unlink(missing_ok=True)
        target.put(target.seeds[0])

    # ---- mutants

    def mutants(self, number: int) -> Outcome:
        target = self.schedule[number % len(self.schedule)]
        at = mmap.mmap(-1, 8)  # which mutant the fork is at, also after a crash
        told = self._told(lambda: json.dumps(self._faults_of(target, number, at)), seconds=self.batch * 0.3 + 60)
        self._put_back(target)
        (last,) = struct.unpack("q", at[:8])
        if told is None:
            return hung(target.name, f"mutant {last}: no end", others=last)
        if not told.startswith("["):
            return missed(target.name, f"mutant {last}: {told}", others=last)
        if faults := json.loads(told):
            return missed(target.name, f"{len(faults)} of {self.batch}: {faults[0]}", self.batch - len(faults))
        return held(target.name, others=self.batch - 1)

    def content(self, target: Target, number: int, i: int) -> bytes:
        """Mutant i of a batch; any can be made again alone."""
        draw = random.Random(f"{self.seed} {number} {i}")
        return mutant(draw.choice(target.seeds), draw, target.seeds, is_json=target.is_json)

    def _faults_of(self, target: Target, number: int, at: mmap.mmap) -> list[str]:
        for seed in target.seeds:
            target.put(seed)
            with contextlib.suppress(Exception):
                target.work()  # imports what it needs
        return list(self._faults(target, number, at, Guard([self.ground])))

    def _faults(self, target: Target, number: int, at: mmap.mmap, guard: Guard) -> Iterator[str]:
        for i in range(self.batch):
            at[:8] = struct.pack("q", i)
            target.put(self.content(target, number, i))
            if (fault := guard.judge(target.work)) is not None:
                yield f"mutant {i}: {fault}"

    # ----

    def _told(self, work: Callable[[], str | None], seconds: float) -> str | None:
        """What a fork found, in words; empty for nothing; None if it did not end."""
        found = self.ground / "told"
        found.unlink(missing_ok=True)

        def run() -> None:
            tempfile.tempdir = str(self.ground)  # where temporary files are is watched, too
            found.write_text(work() or "")

        ended = forked.run(run, self.ground / "log", seconds=seconds)
        if ended.code is None:
            return None
        if ended.code or not found.exists():
            return f"ended the process with {ended.code}: {ended.err.strip()[-200:]}"
        return found.read_text()
