"""The steps of a command: its calls by names that are the same in every run, and the points at which to kill it."""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from stress.kills.syscalls.calls import DATA, Call
from stress.kills.syscalls.tracer import Moment, Point

OF_ONE_RUN = (
    (re.compile(r"\.+([^/ ]+?)(\.[^/. ]+-\d+[^/ ]*)?\.aligndistil-tmp"), r".\1.tmp"),
    (re.compile(r"\.tmp[A-Za-z0-9]{6}\b"), ".tmp"),
    (re.compile(r"\.trial-[^/ ]+"), ".trial"),
)
"""Parts of the names of temporary files that differ from run to run."""
ALIKE = (
    (re.compile(r"checkpoint-\d+"), "checkpoint-N"),
    (re.compile(r"part-\d+"), "part-N"),
    (re.compile(r"\b(dpo|reverse)(/| |$)"), r"ROLE\2"),
)


def namer(folder: Path) -> Callable[[Call], str]:
    """call -> its step, such as "rename .plan.json.tmp plan.json"; "" for calls elsewhere."""
    prefix = f"{folder}/"

    def name(call: Call) -> str:
        inside = [f"{path}/".removeprefix(prefix).rstrip("/") for path in call.paths if f"{path}/".startswith(prefix)]
        if not inside:
            return ""
        text = " ".join([call.name, *(path or "." for path in inside)])
        for pattern, short in OF_ONE_RUN:
            text = pattern.sub(short, text)
        return text

    return name


def kind_of(step: str) -> str:
    """Steps of one kind differ only in the number of a shard or checkpoint, or in the role."""
    for pattern, short in ALIKE:
        step = pattern.sub(short, step)
    return step


def points(steps: Sequence[str], moments: Callable[[str], Iterable[Moment]], rng: random.Random) -> list[Point]:
    """For every kind of step and every moment one point, at an occurrence that is drawn."""
    kinds: dict[str, list[tuple[str, int]]] = defaultdict(list)
    seen: Counter[str] = Counter()
    for step in steps:
        seen[step] += 1
        kinds[kind_of(step)].append((step, seen[step]))
    return [Point(*rng.choice(found), moment) for kind, found in kinds.items() for moment in moments(kind)]


def moments_of_calls(step: str) -> tuple[Moment, ...]:
    return ("before", "half", "after") if step.partition(" ")[0] in DATA else ("before", "after")
