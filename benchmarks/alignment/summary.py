"""Computes the figures of the page, over seeds and by method, from results.json. Pure functions of plain numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from benchmarks.alignment.frontier import Interval, interval, reward_at, steps_to
from benchmarks.alignment.methods import FEW

Results = Mapping[str, Any]
Seed = Mapping[str, Any]
ABLATIONS = (
    ("aligndistil", "contrastive"),
    ("aligndistil", "adaptive"),
    ("contrastive", "linear"),
    ("adaptive", "linear"),
    ("linear", "dpo"),
)
"""The paper's order: the first one should be above the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures:
    """One method at one value of its knob, over seeds.

    steps, seconds   to DPO's last reward (`target_of`), mean over seeds that reach it
    reached, seeds   number of these seeds, and of all
    best             of the judged models during training, chosen by the other half of the samples
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
    """The seeds, with their runs on few pairs."""
    return [
        {**seed, "runs": seed["runs"] + results["few_seeds"][name]["runs"]} for name, seed in results["seeds"].items()
    ]


def methods_of(results: Results) -> list[str]:
    """The methods, in the order of the runs."""
    return list(dict.fromkeys(run["method"] for run in seeds_of(results)[0]["runs"]))


def points_of(seed: Seed, method: str) -> list[Mapping[str, float]]:
    """All judged models of a method, and the reference."""
    return [seed["reference"], *(point for run in seed["runs"] if run["method"] == method for point in run["points"])]


def ending_of(method: str) -> str:
    """The ending of a method's name if it was run on few pairs."""
    return f", {FEW}" if method.endswith(FEW) else ""


def choices_of(results: Results, ending: str) -> Mapping[str, Any]:
    """The choices for these runs."""
    (found,) = results["few_tuning" if ending else "tuning"].values()
    return found


def frontier(results: Results, method: str, kl_nats: float) -> Interval:
    """True reward at a KL, over seeds."""
    return interval([reward_at(points_of(seed, method), kl_nats) for seed in seeds_of(results)])


def difference(results: Results, method: str, other: str, kls: Sequence[float]) -> Interval:
    """Of two frontiers, the mean over some KLs, paired over seeds."""
    gaps = [
        [reward_at(points_of(seed, method), kl) - reward_at(points_of(seed, other), kl) for kl in kls]
        for seed in seeds_of(results)
    ]
    return interval([fmean(gap) for gap in gaps])


def target_of(results: Results, seed: Seed, method: str = "dpo") -> float:
    """DPO's last reward on the same pairs, at the beta whose run ended highest on the seed of the choices."""
    ending = ending_of(method)
    beta = choices_of(results, ending)["dpo_beta"]
    run = next(run for run in seed["runs"] if run["method"] == f"dpo{ending}" and run["value"] == beta)
    return run["points"][-1]["reward"]


def run_figures(results: Results) -> list[RunFigures]:
    seeds = seeds_of(results)
    return [_figures(results, [seed["runs"][i] for seed in seeds], seeds) for i in range(len(seeds[0]["runs"]))]


def accuracies(results: Results) -> dict[str, Interval]:
    """Name of a model or teacher -> share of held-out pairs that it gets right."""
    seeds = seeds_of(results)
    return {name: interval([seed["accuracy"][name] for seed in seeds]) for name in seeds[0]["accuracy"]}


def _figures(results: Results, runs: Sequence[Mapping[str, Any]], seeds: Sequence[Seed]) -> RunFigures:
    first, last = runs[0], [run["points"][-1] for run in runs]
    paths = [[seed["reference"], *run["points"]] for run, seed in zip(runs, seeds, strict=True)]
    best = [max(path, key=lambda point: point["choice_reward"]) for path in paths]
    targets = [target_of(results, seed, first["method"]) for seed in seeds]
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
