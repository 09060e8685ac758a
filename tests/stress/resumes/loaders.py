"""The campaign `loaders`: trouble in the middle of training ends it with one line, and the same command goes on."""

import random
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from safetensors.torch import load_file

from stress.campaign import Campaign, Outcome, held, hung, missed
from stress.forked import Ended
from stress.resumes import defects
from stress.resumes.campaign import distance
from stress.resumes.ground import EPOCHS, Ground
from stress.resumes.leg import WEIGHTS, Kind, Layout, Leg, run_leg
from stress.resumes.trouble import OF_RANKS, TROUBLES, Trouble
from student.runs.checkpoints import newest_whole

CASES = 120
KIND = Kind(caches=1, window=None, bf16=False, dropout=True, optim="adamw_torch", rates="cosine_with_min_lr")
STEPS = 3 * EPOCHS
EVERY_RANK = 12
"""One case in so many is of two ranks, which take long."""

WARNINGS = (*(f"step {n}: the student has" for n in range(STEPS + 1)), "[transformers] mtime", "[rank")
"""Beginnings of lines that a healthy run says too."""

LONGEST = 400
"""The most letters of the one line."""


class Loaders(Campaign):
    """Each case is a run of 9 steps with one trouble, and the run that goes on after a repair."""

    name: ClassVar[str] = "loaders"
    unit: ClassVar[str] = "troubles"
    defects: ClassVar[Mapping[str, Callable[[], AbstractContextManager[object]]]] = defects.OF_A_LOADER

    def __init__(self, ground: Path, seed: int) -> None:
        self.folder, self.seed = ground, seed
        self.ground = Ground.make(ground / "caches")

    def __len__(self) -> int:
        return CASES

    def case(self, number: int) -> Outcome:
        out = self.folder / f"case-{number}"
        ground = Ground(folder=Path(shutil.copytree(self.ground.folder, out / "caches")))
        trouble, leg = happening(self.seed, number, ground.folder)
        try:
            return self._case(ground, trouble, leg, out)
        finally:
            shutil.rmtree(out)

    def _case(self, ground: Ground, trouble: Trouble, leg: Leg, out: Path) -> Outcome:
        name, run = trouble.name, out / "run"
        run.mkdir()
        flags = {"save_total_limit": 1, **trouble.flags}
        ends = run_leg(ground, KIND, leg, run, out / "log", {"callbacks": [trouble], **flags})
        if any(end.code is None for end in ends):
            return hung(name, f"{leg}: {ends[0].err[-300:]}")
        # a run may end well if what was damaged had been read before
        if any(end.code for end in ends):
            if text := "; ".join(filter(None, map(fault_of, ends))):
                return missed(name, f"{leg}: {text}")
            if trouble.step > 0 and newest_whole(run)[0] is None:
                return missed(name, f"{leg}: expected a whole checkpoint, found none")
            trouble.repair(self.ground.folder)
            ends = run_leg(
                ground, KIND, replace(leg, workers=(leg.workers + 1) % 3, persistent=False), run, out / "log"
            )
            if any(end.code for end in ends):
                return missed(name, f"{leg}: expected to go on, got {ends[0].code}: {ends[0].err[-300:]}")
        apart = distance(
            self._unbroken(leg.layout), load_file(run / WEIGHTS), ground.student(dropout=False).state_dict()
        )
        return (
            held(name) if apart == 0 else missed(name, f"{leg}: expected the unbroken run's weights, got {apart:g} off")
        )

    def _unbroken(self, layout: Layout) -> Mapping[str, object]:
        out = self.folder / f"unbroken-{layout.ranks}"
        if not (out / WEIGHTS).exists():
            out.mkdir()
            leg = Leg(layout=layout, workers=0, persistent=False, save_every=1000, stop=None)
            ends = run_leg(self.ground, KIND, leg, out, out / "log")
            assert not any(end.code for end in ends), ends[0].err
        return load_file(out / WEIGHTS)


def happening(seed: int, number: int, folder: Path) -> tuple[Trouble, Leg]:
    """A pure function of seed and number."""
    rng = random.Random(f"loaders {seed} {number}")
    kind = rng.choice(OF_RANKS) if number % EVERY_RANK == 0 else TROUBLES[number % len(TROUBLES)]
    workers = rng.choice(kind.workers)
    leg = Leg(
        layout=Layout(micro=4 if kind.ranks == 1 else 2, ranks=kind.ranks),
        workers=workers,
        persistent=workers > 0 and rng.random() < 0.5,
        save_every=1,
        stop=None,
    )
    return kind(rng, folder, rng.randrange(STEPS)), leg


def fault_of(end: Ended) -> str:
    """What is wrong with how a run ended: it must be killed by the case itself, or say one line and exit with 2."""
    if end.code == -9:
        return ""
    lines = [line for line in end.err.splitlines() if line.strip()]
    errors = [line for line in lines if not line.startswith(WARNINGS)]
    if end.code == 2 and len(errors) == 1 and errors[0].startswith("error: ") and len(errors[0]) < LONGEST:
        return ""
    return f"expected exit code 2 and one line, got {end.code} and {len(lines)} lines: {' / '.join(lines)[-900:]}"
