"""From results.json to what the page says: figures over seeds by method. Pure functions of plain numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from benchmarks.alignment.frontier import Interval, interval, reward_at, steps_to
from benchmarks.alignment.methods import BETA, MILD

Results = Mapping[str, Any]
Seed = Mapping[str, Any]
ABLATIONS = (
    ("aligndistil", "contrastive"),
    ("aligndistil", "adaptive"),
    ("contrastive", "linear"),
    ("adaptive", "linear"),
    ("linear", "dpo"),
)
MILD_ABLATIONS = (
    *((f"{mine}, {MILD}", f"{other}, {MILD}") for mine, other in ABLATIONS),
    (f"aligndistil, {MILD}", f"dpo, {MILD}"),
)
"""The paper's order: what is named first should lie above the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures:
    """One method at one value of its knob, over seeds.

    steps, seconds   to the last reward of the DPO model that its teachers are made of, mean over seeds that reach it
    reached, seeds   number of these seeds, and of all
    best             of the judged models on the way, chosen by the other half of the samples
    """

    method: str
    knob: str
    reward: Interval
    best: Interval
    kl_nats: Interval
    tokens: float
    steps: float | None
    seconds: float | None
    reached: int
    seeds: int


def seeds_of(results: Results) -> list[Seed]:
    """With the runs of their mild teachers, as far as these are done."""
    return [
        {**seed, "runs": seed["runs"] + results["mild"].get(name, {"runs": []})["runs"]}
        for name, seed in results["seeds"].items()
    ]


def methods_of(results: Results) -> list[str]:
    """In the order in which they were run."""
    return list(dict.fromkeys(run["method"] for run in seeds_of(results)[0]["runs"]))


def points_of(seed: Seed, method: str) -> list[Mapping[str, float]]:
    """All judged models of a method, and the reference."""
    return [seed["reference"], *(point for run in seed["runs"] if run["method"] == method for point in run["points"])]


def seeds_with(results: Results, *methods: str) -> list[Seed]:
    """The seeds in which these methods were run."""
    return [seed for seed in seeds_of(results) if {run["method"] for run in seed["runs"]}.issuperset(methods)]


def frontier(results: Results, method: str, kl_nats: float) -> Interval:
    """True reward at a KL, over seeds."""
    return interval([reward_at(points_of(seed, method), kl_nats) for seed in seeds_with(results, method)])


def difference(results: Results, method: str, other: str, kls: Sequence[float]) -> Interval:
    """Of two frontiers, the mean over some KLs, paired over seeds."""
    gaps = [
        [reward_at(points_of(seed, method), kl) - reward_at(points_of(seed, other), kl) for kl in kls]
        for seed in seeds_with(results, method, other)
    ]
    return interval([fmean(gap) for gap in gaps])


def target_of(seed: Seed, method: str = "dpo") -> float:
    """The last reward of the DPO model that a method's teachers are made of."""
    name = f"dpo, {MILD}" if method.endswith(MILD) else "dpo"
    return next(run for run in seed["runs"] if run["method"] == name and run["value"] == BETA)["points"][-1]["reward"]


def run_figures(results: Results) -> list[RunFigures]:
    found = []
    for i, run in enumerate(seeds_of(results)[0]["runs"]):
        seeds = seeds_with(results, run["method"])
        found.append(_figures([seed["runs"][i] for seed in seeds], seeds))
    return found


def accuracies(results: Results) -> dict[str, Interval]:
    """Name of a model or teacher -> share of held-out pairs that it tells right."""
    seeds = seeds_of(results)
    return {name: interval([seed["accuracy"][name] for seed in seeds]) for name in seeds[0]["accuracy"]}


def _figures(runs: Sequence[Mapping[str, Any]], seeds: Sequence[Seed]) -> RunFigures:
    first, last = runs[0], [run["points"][-1] for run in runs]
    paths = [[seed["reference"], *run["points"]] for run, seed in zip(runs, seeds, strict=True)]
    best = [max(path, key=lambda point: point["choice_reward"]) for path in paths]
    targets = [target_of(seed, first["method"]) for seed in seeds]
    return RunFigures(
        method=first["method"],
        knob="" if first["knob"] is None else f"{first['knob']} {first['value']:g}",
        reward=interval([point["reward"] for point in last]),
        best=interval([point["reward"] for point in best]),
        kl_nats=interval([point["kl_nats"] for point in last]),
        tokens=fmean(point["tokens"] for point in last),
        steps=_mean_reached(paths, targets, "step"),
        seconds=_mean_reached(paths, targets, "seconds"),
        reached=sum(steps_to(path, target) is not None for path, target in zip(paths, targets, strict=True)),
        seeds=len(seeds),
    )


def _mean_reached(paths: Sequence[Sequence[Mapping[str, float]]], targets: Sequence[float], unit: str) -> float | None:
    found = [steps_to(path, target, unit=unit) for path, target in zip(paths, targets, strict=True)]
    reached = [value for value in found if value is not None]
    return fmean(reached) if reached else None
