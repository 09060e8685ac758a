"""The campaign `resumes`: random schedules of stops end as unbroken runs do, sample by sample and bit by bit."""

import json
import random
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, get_args

import torch
from safetensors.torch import load_file

from stress.campaign import Campaign, Outcome, held, hung, missed
from stress.resumes import defects
from stress.resumes.ground import EPOCHS, Ground, Order
from stress.resumes.leg import WEIGHTS, How, Kind, Layout, Leg, run_leg
from student.watch.samples import read_samples

CASES = 200
LAYOUTS = (8, 4, 2, 1)
ROUNDING = {"sgd": 1e-5, "adamw_torch": 1e-3, "bf16": 0.2}
"""The largest distance of the weights of two layouts, as a share of the way from the first weights. Measured: see
docs/decisions/0025."""


class Resumes(Campaign):
    """Each case is a schedule: a run of 9 or 18 steps over three epochs, stopped one to three times."""

    name: ClassVar[str] = "resumes"
    unit: ClassVar[str] = "schedules"
    defects: ClassVar[Mapping[str, Callable[[], AbstractContextManager[object]]]] = defects.OF_A_RESUME

    def __init__(self, ground: Path, seed: int) -> None:
        self.folder, self.seed = ground, seed
        self.ground = Ground.make(ground / "caches")
        self.orders: dict[tuple[int, int | None], Order] = {}

    def __len__(self) -> int:
        return CASES

    def case(self, number: int) -> Outcome:
        kind, legs = schedule(self.seed, number)
        out = self.folder / f"case-{number}"
        out.mkdir()
        same = len({leg.layout for leg in legs}) == 1
        name = f"{'same' if same else 'other'} layout, {'2 ranks' if _most_ranks(legs) > 1 else '1 rank'}"
        try:
            return self._case(kind, legs, out, name, same)
        finally:
            shutil.rmtree(out)

    def _case(self, kind: Kind, legs: list[Leg], out: Path, name: str, same: bool) -> Outcome:
        reference = self._unbroken(kind, legs[0].layout)
        order = self._order(kind)
        for number, leg in enumerate(legs):
            ends = run_leg(self.ground, kind, leg, out, out / f"log-{number}")
            if any(end.code is None for end in ends):
                return hung(name, f"leg {number}: {leg}")
            if leg.stop is None and any(end.code for end in ends):
                return missed(
                    name, f"leg {number}: expected an end, got {[end.code for end in ends]}: {ends[0].err[-300:]}"
                )
            if text := self._differing(out, leg.layout, order):
                return missed(name, f"leg {number} of {legs}: {text}")
        if read_samples(out) != order.places:
            return missed(name, f"samples.jsonl: expected {order.places}, got {read_samples(out)}")
        apart = distance(reference, load_file(out / WEIGHTS), self._begin(kind))
        most = 0.0 if same else ROUNDING["bf16" if kind.bf16 else kind.optim]
        if apart > most:
            return missed(name, f"expected weights at most {most:g} of their way apart, got {apart:g}: {kind}, {legs}")
        return held(name)

    def _differing(self, out: Path, layout: Layout, order: Order) -> str:
        """What passed through the loss in a leg and is not what the order says; the record is removed."""
        files = [out / f"passed-{rank}.jsonl" for rank in range(layout.ranks)]
        found = [_by_step(path) for path in files]
        for path in files:
            path.unlink(missing_ok=True)
        for step in sorted({step for steps in found for step in steps}):
            parts = [steps.get(step, []) for steps in found]
            whole = min(map(len, parts))  # ranks that are killed do not get equally far
            passed = [
                key
                for at_once in zip(*(part[:whole] for part in parts), strict=True)
                for turn in zip(*at_once, strict=True)
                for key in turn
                if key is not None
            ]
            expected = order.keys[step]
            if passed != expected[: len(passed)] or (step + 1 in found[0] and len(passed) < len(expected)):
                return f"step {step}: expected {expected}, got {passed}"
        return ""

    def _order(self, kind: Kind) -> Order:
        key = (kind.caches, kind.window)
        if key not in self.orders:
            self.orders[key] = Order.of(self.ground.caches(kind.caches), kind.window)
        return self.orders[key]

    def _begin(self, kind: Kind) -> dict[str, torch.Tensor]:
        return dict(self.ground.student(dropout=False).state_dict())

    def _unbroken(self, kind: Kind, layout: Layout) -> dict[str, torch.Tensor]:
        """The last weights of a run that nobody stops; computed once, without a planted defect."""
        out = self.folder / f"unbroken-{hash((kind, layout)) & 0xFFFFFFFF:x}"
        if not (out / WEIGHTS).exists():
            out.mkdir()
            leg = Leg(layout=layout, workers=0, persistent=False, save_every=1000, stop=None)
            ends = run_leg(self.ground, kind, leg, out, out / "log")
            assert not any(end.code for end in ends), ends[0].err
            assert not self._differing(out, layout, self._order(kind)), "an unbroken run follows the order"
        return load_file(out / WEIGHTS)


def schedule(seed: int, number: int) -> tuple[Kind, list[Leg]]:
    """A pure function of seed and number."""
    rng = random.Random(f"resumes {seed} {number}")
    kind = Kind(
        caches=rng.choice((1, 2)),
        window=rng.choice((None, None, 2)),
        bf16=rng.random() < 0.2,
        dropout=rng.random() < 0.3,
        optim=rng.choice(("adamw_torch", "sgd")),
        rates=rng.choice(("cosine_with_min_lr", "constant_with_warmup")),
    )
    steps = EPOCHS * (3 if kind.caches == 1 else 6)
    first = Layout(micro=rng.choice(LAYOUTS))
    if rng.random() < 0.06:
        first = Layout(micro=rng.choice((4, 2)), ranks=2)
    changes = not kind.dropout and rng.random() < 0.5
    stops = sorted(rng.sample(range(1, steps), rng.choice((1, 1, 2, 3))))
    legs = [_leg(rng, kind, first if not changes else _other(rng, first), step) for step in [*stops, None]]
    return kind, [replace(legs[0], layout=first), *legs[1:]]


def _other(rng: random.Random, first: Layout) -> Layout:
    """Another division of the global batch; on other ranks in few schedules, because they take long."""
    if first.ranks == 2 or rng.random() < 0.06:
        return rng.choice((Layout(micro=2, ranks=2), Layout(micro=4, ranks=2), Layout(micro=4), Layout(micro=8)))
    return Layout(micro=rng.choice(LAYOUTS))


def _leg(rng: random.Random, kind: Kind, layout: Layout, step: int | None) -> Leg:
    workers = rng.choice((0, 0, 1, 2))
    how = [name for name in get_args(How) if name != "--max_steps" or kind.rates == "constant_with_warmup"]
    return Leg(
        layout=layout,
        workers=workers,
        persistent=workers > 0 and rng.random() < 0.5,
        save_every=rng.choice((1, 2, 3)),
        stop=None if step is None else (rng.choice(how), step),
    )


def _most_ranks(legs: list[Leg]) -> int:
    return max(leg.layout.ranks for leg in legs)


def _by_step(path: Path) -> dict[int, list[list[str | None]]]:
    """Step -> its micro-batches; a kill may have cut the last line."""
    found: dict[int, list[list[str | None]]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.endswith("}"):
            entry = json.loads(line)
            found.setdefault(entry["step"], []).append(entry["keys"])
    return found


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], begin: dict[str, torch.Tensor]) -> float:
    """How far two students are apart, as a share of the way of the first; computed in float64."""
    assert one.keys() == other.keys()
    apart = sum((one[n].double() - other[n].double()).square().sum() for n in one)
    way = sum((one[n].double() - begin[n].double()).square().sum() for n in one)
    return float((apart / way) ** 0.5)
