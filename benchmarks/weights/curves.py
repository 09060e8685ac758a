"""The judged models of every rule, and differences of their frontiers at the same KL. Pure functions of numbers."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.alignment.frontier import Interval, interval, reward_at
from benchmarks.weights.rules import NONE

KNOWN_KLS = (0.25, 0.5, 1.0, 2.0)
"""Nats a response, as on docs/results.md."""
Parts = Mapping[str, Mapping[str, Any]]
"""dtype of the bodies -> seed -> its runs."""
Point = Mapping[str, float]
Curves = Mapping[str, Sequence[Point]]
"""Seed -> the judged models of one rule, the reference among them."""


def rows_of(parts: Parts) -> list[tuple[str, str]]:
    """(dtype, rule) of every row, float32 first."""
    dtypes = sorted(parts, key=lambda dtype: (dtype != "float32", dtype))
    return [
        (dtype, rule)
        for dtype in dtypes
        for rule in dict.fromkeys(run["rule"] for run in next(iter(parts[dtype].values()))["runs"])
    ]


def compared_with(dtype: str, rule: str) -> tuple[str, str]:
    """A limit is compared with the same bodies without it; half-precision bodies without one, with float32 ones."""
    return ("float32" if rule == NONE else dtype), NONE


def known_curves(parts: Parts, dtype: str, rule: str) -> Curves:
    return {
        seed: [part["reference"], *(p for run in part["runs"] if run["rule"] == rule for p in run["points"])]
        for seed, part in parts.get(dtype, {}).items()
    }


def trio_curves(parts: Parts, dtype: str, rule: str, rate: float | None = None) -> Curves:
    """rate: None for any.

    The metrics are sums over the vocabulary on the same responses: nothing is sampled, so the figures that choose are
    those that are reported.
    """
    return {
        seed: [
            point | {"choice_reward": point["reward"], "choice_kl": point["kl_nats"]}
            for run in part["runs"]
            if run["rule"] == rule and rate in (None, run["rate"])
            for point in run["points"]
        ]
        for seed, part in parts.get(dtype, {}).items()
    }


def plain_curves(parts: Parts, more: Parts, dtype: str) -> Curves:
    """Without a limit: the students of these bodies at all learning rates."""
    further = trio_curves(more, dtype, NONE)
    return {seed: [*curve, *further.get(seed, [])] for seed, curve in trio_curves(parts, dtype, NONE).items()}


def known_gaps(parts: Parts) -> list[tuple[str, str, Interval]]:
    """(dtype, rule, mean difference of the frontiers over the KLs) of every row that is compared with another."""
    found = []
    for dtype, rule in rows_of(parts):
        here, other = known_curves(parts, dtype, rule), known_curves(parts, *compared_with(dtype, rule))
        if gaps := differences(here, other, KNOWN_KLS):
            found.append((dtype, rule, interval(gaps)))
    return found


def trio_gaps(parts: Parts, more: Parts) -> list[tuple[str, str, Interval]]:
    """(dtype, rule, difference at the KL where it ends, in percent) of every row that can be compared."""
    found = []
    for dtype, rule in rows_of(parts):
        here, other = trio_curves(parts, dtype, rule), plain_curves(parts, more, compared_with(dtype, rule)[0])
        if (dtype, rule) != ("float32", NONE) and (gaps := at_ends(here, other)):
            found.append((dtype, rule, interval(gaps)))
    return found


def differences(here: Curves, other: Curves, kls: Sequence[float]) -> list[float]:
    """The mean difference of two frontiers at some KLs, for every seed that both have; none of a row with itself."""
    if here == other:
        return []
    return [
        fmean(reward_at(here[seed], kl) - reward_at(other[seed], kl) for kl in kls) for seed in here if seed in other
    ]


def at_ends(here: Curves, other: Curves) -> list[float]:
    """Reward at the KL where a curve ends, less the other frontier's there, in percent of that; one for every seed that
    both have. None at all if the other does not reach it.
    """
    both = [seed for seed in here if seed in other]
    kls = {seed: here[seed][-1]["kl_nats"] for seed in both}
    if any(max(point["kl_nats"] for point in other[seed]) < kls[seed] for seed in both):
        return []
    return [100 * (reward_at(here[seed], kls[seed]) / reward_at(other[seed], kls[seed]) - 1) for seed in both]
