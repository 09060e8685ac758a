"""Runs a campaign in slices of bounded time: which case is next, what was counted, and the cases that did not hold."""

import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from stress.campaign import Campaign, Outcome

KEPT = 50  # cases that did not hold, with their lines; all are counted


@dataclass(slots=True)
class State:
    """How far a campaign is.

    counts     "kind | verdict" -> cases, or tries where a case is a batch of them
    failures   number and line of cases that did not hold
    """

    campaign: str
    seed: int
    cases: int
    done: int = 0
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)

    def add(self, number: int, outcome: Outcome) -> None:
        self.done += 1
        self.counts[f"{outcome.kind} | {outcome.verdict}"] += 1
        if outcome.others:
            self.counts[f"{outcome.kind} | held"] += outcome.others
        if outcome.verdict != "held" and len(self.failures) < KEPT:
            self.failures.append((number, f"{outcome.verdict}: {outcome.kind}: {outcome.text}"))

    def total(self, verdict: str) -> int:
        return sum(count for name, count in self.counts.items() if name.endswith(f"| {verdict}"))

    def write(self, path: Path) -> None:
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(replace(self, counts=dict(self.counts))), indent=1) + "\n")
        temporary.replace(path)


def read_state(path: Path, campaign: str, seed: int, cases: int) -> State:
    """The state in a file, or a new one. Raises ValueError if it is of another seed or size."""
    if not path.exists():
        return State(campaign=campaign, seed=seed, cases=cases)
    found = json.loads(path.read_text())
    state = State(**found | {"counts": Counter(found["counts"]), "failures": [(n, s) for n, s in found["failures"]]})
    if (state.seed, state.cases) != (seed, cases):
        wanted, got = f"seed {seed} and {cases:,} cases", f"{state.seed} and {state.cases:,}"
        raise ValueError(f"{path}: expected {wanted}, got {got}; remove it to begin anew")
    return state


def spread(cases: int, seed: int, begin: int = 0) -> Iterator[int]:
    """All numbers below `cases` once, from the `begin`-th on, in an order in which any slice is a sample of all."""
    start = random.Random(seed).randrange(cases)
    step = next(n for n in range(max(1, round(cases * 0.618)), 2 * cases + 2) if math.gcd(n, cases) == 1)
    return ((start + i * step) % cases for i in range(begin, cases))


def run_slice(campaign: Campaign, state: State, seconds: float, tell: Callable[[State], None]) -> None:
    """Run further cases, at least one, until the time is over or all are done. tell: called after each case."""
    begin, before = time.monotonic(), state.seconds
    for number in spread(len(campaign), state.seed, state.done):
        state.add(number, campaign.case(number))
        passed = time.monotonic() - begin
        state.seconds = before + passed
        tell(state)
        if passed >= seconds:
            break


def cases_until_caught(campaign: Campaign, defect: str, *, limit: int, seconds: float) -> int | None:
    """How many cases it takes until one does not hold because of a planted defect; None if there is none such."""
    begin = time.monotonic()
    for count, number in enumerate(spread(len(campaign), campaign.seed), start=1):
        with campaign.defects[defect]():
            holds = campaign.case(number).verdict == "held"
        if not holds and campaign.case(number).verdict == "held":  # without the defect
            return count
        if count == limit or time.monotonic() - begin > seconds:
            return None
    return None
