"""Mutants: batches of mutants of one kind of file, each batch in a fork that is watched."""

import contextlib
import json
import mmap
import random
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
from stress.mutants.targets import Target, targets

MUTANTS, BATCH = 1_000_000, 500


class Mutants(Campaign):
    """A case is a batch of mutants of one target. `batch`: how many."""

    name: ClassVar[str] = "mutants"
    unit: ClassVar[str] = f"batches of {BATCH} mutants"
    defects: ClassVar[Mapping[str, Callable[[], contextlib.AbstractContextManager[object]]]] = DEFECTS
    batch = BATCH

    def __init__(self, ground: Path, seed: int) -> None:
        memory = Path("/dev/shm")  # every mutant is a file
        self._folder = tempfile.TemporaryDirectory(prefix="mutants-", dir=memory if memory.is_dir() else ground)
        self.ground, self.seed = Path(self._folder.name), seed
        self.targets = targets(self.ground / "given")
        self.schedule = [target for target in self.targets.values() for _ in range(target.weight)]
        random.Random(seed).shuffle(self.schedule)

    def __len__(self) -> int:
        return MUTANTS // BATCH

    def case(self, number: int) -> Outcome:
        target = self.schedule[number % len(self.schedule)]
        at = mmap.mmap(-1, 8)  # which mutant the fork is at, also after a crash
        found = self.ground / "faults.json"
        found.unlink(missing_ok=True)

        def run() -> None:
            found.write_text(json.dumps(self._batch(target, number, at)))

        ended = forked.run(run, self.ground / "log", seconds=self.batch * 0.2 + 30 * SECONDS)
        target.put(target.seeds[0])
        (last,) = struct.unpack("q", at[:8])
        if ended.code is None:
            return hung(target.name, f"mutant {last}: no end")
        if ended.code or not found.exists():
            told = ended.err.strip().splitlines()[-1:]
            return missed(target.name, f"mutant {last}: ended the process with {ended.code} {told}", others=last)
        faults = json.loads(found.read_text())
        if faults:
            return missed(target.name, f"{len(faults)} of {self.batch}: {faults[0]}", self.batch - len(faults))
        return held(target.name, others=self.batch - 1)

    def content(self, target: Target, number: int, i: int) -> bytes:
        """Mutant i of a batch; any can be made again alone."""
        draw = random.Random(f"{self.seed} {number} {i}")
        return mutant(draw.choice(target.seeds), draw, target.seeds, is_json=target.is_json)

    def _batch(self, target: Target, number: int, at: mmap.mmap) -> list[str]:
        for seed in target.seeds:
            target.put(seed)
            with contextlib.suppress(Exception):
                target.work()
        guard = Guard([self.ground])
        return list(self._faults(target, number, at, guard))

    def _faults(self, target: Target, number: int, at: mmap.mmap, guard: Guard) -> Iterator[str]:
        for i in range(self.batch):
            at[:8] = struct.pack("q", i)
            content = self.content(target, number, i)
            target.put(content)
            if (fault := guard.judge(target.work)) is not None:
                yield f"mutant {i}: {fault}"
