"""Kills: a command is killed once or several times, then ends; what is left must be as if nothing had happened."""

import atexit
import functools
import os
import random
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

from stress import forked
from stress.campaign import Campaign, Outcome, held, hung, missed
from stress.kills.bucket import BucketJob, moments_of_requests
from stress.kills.commands import Inputs, commands, to_buckets
from stress.kills.defects import DEFECTS
from stress.kills.jobs import AtTime, FolderJob, Job
from stress.kills.rules import CacheRules, RolloutRules, TeacherRules, TrainRules
from stress.kills.syscalls.order import Disk
from stress.kills.syscalls.steps import kind_of, moments_of_calls, points
from stress.kills.syscalls.tracer import Point

RULES = {
    "build": CacheRules(), "copy": CacheRules(), "rollout": RolloutRules(), "train": TrainRules(),
    "teachers": TeacherRules(),
}  # fmt: skip
MARKERS = ("manifest.json", "distill_run.json", "made_from.json")
AT_RANDOM = {
    "build": 0.2, "copy": 0.1, "rollout": 0.1, "train": 0.25, "teachers": 0.25, "build to a bucket": 0.05,
    "copy to a bucket": 0.05,
}  # fmt: skip
"""How the kills at random times are shared out."""
KILLS = 1_000
FURTHER = (0, 0, 1, 2)
"""Kills after the first, of which one number is drawn."""


class Kills(Campaign):
    """Cases: the law of order of each command, then every step at every moment, then random times up to KILLS."""

    name, unit = "kills", "cases"
    names: ClassVar[tuple[str, ...]] = tuple(AT_RANDOM)
    defects: ClassVar[Mapping[str, Callable[[], AbstractContextManager[object]]]] = DEFECTS

    def __init__(self, ground: Path, seed: int) -> None:
        self.ground, self.seed = ground.resolve(), seed
        ground = self.ground
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        trio, data, cache = ground / "trio", ground / "pairs.jsonl", ground / "build" / "cache"
        roles = ("reference", "dpo", "reverse")
        self._inputs = Inputs(models={role: trio / role for role in roles}, data=data, cache=ground / "cache")
        _make(self._inputs, ground)
        self._commands = commands(self._inputs)
        with_cache = self.job("build")
        cache.rename(self._inputs.cache)
        assert with_cache.whole

    @functools.cache  # noqa: B019 - lives as long as the campaign
    def job(self, name: str) -> Job:
        job: FolderJob | BucketJob
        if name in RULES:
            job = FolderJob(name, self._commands[name], RULES[name], self.ground)
        else:
            module, words = to_buckets(self._inputs)[name]
            whole = {path.name: path.read_bytes() for path in self._inputs.cache.iterdir()}
            job = BucketJob(name, module, words, self._server, self.ground, whole)
        job.prepare()
        return job

    @functools.cached_property
    def _server(self) -> Any:
        from object_server import ObjectServer

        server = ObjectServer()
        atexit.register(server.close)
        return server

    @functools.cached_property
    def cases(self) -> list[tuple[str, Point | AtTime | None]]:
        """Command, and where it is killed first; None for the law of order."""
        rng = random.Random(self.seed)
        found: list[tuple[str, Point | AtTime | None]] = [(name, None) for name in self.names if name in RULES]
        without = len(found)
        for name in self.names:
            moments = moments_of_calls if name in RULES else moments_of_requests
            found += [(name, point) for point in points(self.job(name).steps, moments, rng)]
        left = max(0, KILLS + without - len(found))
        for name in self.names:
            found += [(name, AtTime(rng.random())) for _ in range(round(left * AT_RANDOM[name]))]
        return found

    def __len__(self) -> int:
        return len(self.cases)

    def case(self, number: int) -> Outcome:
        name, first = self.cases[number]
        job = self.job(name)
        if first is None:
            assert isinstance(job, FolderJob)
            return in_order(job)
        rng = random.Random(f"{self.seed} {number}")
        further = [Point(None, rng.randrange(1, len(job.steps)), "before") for _ in range(rng.choice(FURTHER))]
        return killed(job, [first, *further])


def in_order(job: FolderJob) -> Outcome:
    """The law of order, in a run that nothing disturbs."""
    kind = f"{job.name}: order of calls"
    job.clear()
    ended = job.record()
    if ended.code is None:
        return hung(kind, "no end")
    faults = list(Disk(str(job.folder), MARKERS).faults(job.calls))
    job.clear()
    return missed(kind, f"{faults[0]} (and {len(faults) - 1} more)") if faults else held(kind)


def killed(job: Job, at: list[Point | AtTime]) -> Outcome:
    """Kill a command at each of these points, then let it end."""
    kind = _kind(job.name, at[0])
    job.clear()
    for point in [*at, None]:
        before = job.before()
        ended = job.run(point)
        if ended.code is None:
            return hung(kind, f"no end, with {point}")
        if ended.code not in (0, -9):
            return missed(kind, f"{at}: exit code {ended.code}: {ended.err.strip().splitlines()[-1:]}")
        fault = job.left() or (job.went_on(before, ended) if ended.code == 0 else "")
        if fault:
            return missed(kind, f"{at}, at {point}: {fault}")
    fault = job.other_than_undisturbed()
    job.clear()
    return missed(kind, f"{at}: {fault}") if fault else held(kind)


def _kind(name: str, at: Point | AtTime) -> str:
    if isinstance(at, AtTime):
        return f"{name}: at a random time"
    return f"{name}: {at.moment} {(kind_of(at.step or '')).partition(' ')[0]}"


def _make(inputs: Inputs, ground: Path) -> None:
    """Models and data, made in a fork: this process never computes."""

    def make() -> None:
        from tiny import make_pairs, make_trio, write_jsonl

        make_trio(ground / "trio")
        write_jsonl(inputs.data, make_pairs(6))

    ended = forked.run(make, ground / "log")
    assert ended.code == 0, ended.err
