"""True reward at a matched KL, and intervals over seeds. Pure arithmetic on the plain numbers of results.json.

A method's frontier at a KL of k is the largest true reward of a mixture of two of its models (including the reference)
whose KL to the reference is at most k. A mixture answers with one of its models at random. Its reward is the mean of
theirs, and its KL at most the mean of theirs, because KL is convex. So every point between two points can be reached,
independent of the path of a training. One half of the sampled responses chooses models and weights; the other half
gives the figure, so that more or noisier points are no advantage.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from statistics import fmean, stdev

from shards.errors import OptionError

Point = Mapping[str, float]
T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Degrees of freedom -> the 97.5% point of Student's t."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean over seeds with its 95% t-interval, mean ± half_width; None if there is one seed only."""

    mean: float
    half_width: float | None

    @property
    def is_above_zero(self) -> bool:
        return self.half_width is not None and self.mean - self.half_width > 0

    @property
    def is_below_zero(self) -> bool:
        return self.half_width is not None and self.mean + self.half_width < 0


def interval(values: Sequence[float]) -> Interval:
    """Raises OptionError for more values than the table of t has."""
    if len(values) == 1:
        return Interval(mean=values[0], half_width=None)
    if len(values) - 1 not in T_975:
        raise OptionError(f"seeds: expected 1 to {max(T_975) + 1}, got {len(values)}")
    return Interval(mean=fmean(values), half_width=T_975[len(values) - 1] * stdev(values) / sqrt(len(values)))


def reward_at(points: Sequence[Point], kl_nats: float, *, reward: str = "reward") -> float:
    """The frontier of some models at a KL; `points` include the reference's, whose KL is 0.

    reward: the figure to read, "reward" of the half that reports or "choice_reward" of the half that chooses.
    """
    left, right = _bracket(hull(points), kl_nats)
    if right is None:
        return left[reward]
    share = (kl_nats - left["choice_kl"]) / (right["choice_kl"] - left["choice_kl"])
    return (1 - share) * left[reward] + share * right[reward]


def hull(points: Sequence[Point]) -> list[Point]:
    """The points that no mixture of two others beats, by ascending KL: the rising part of the upper concave hull."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p["choice_kl"], -p["choice_reward"])):
        if kept and point["choice_reward"] <= kept[-1]["choice_reward"]:
            continue
        while len(kept) > 1 and _slope(kept[-2], kept[-1]) <= _slope(kept[-2], point):
            kept.pop()
        kept.append(point)
    return kept


def steps_to(points: Sequence[Point], target: float, *, unit: str = "step") -> float | None:
    """Where a run's reward first reaches `target`, on a straight line between two judgements; None if it never does.

    points: of one run in order, beginning with the start.
    """
    for before, after in pairwise(points):
        if after["reward"] >= target:
            if before["reward"] >= target:
                return before[unit]
            share = (target - before["reward"]) / (after["reward"] - before["reward"])
            return before[unit] + share * (after[unit] - before[unit])
    return None


def _bracket(vertices: Sequence[Point], kl_nats: float) -> tuple[Point, Point | None]:
    for left, right in pairwise(vertices):
        if left["choice_kl"] <= kl_nats < right["choice_kl"]:
            return left, right
    return vertices[-1], None


def _slope(left: Point, right: Point) -> float:
    rise, run = right["choice_reward"] - left["choice_reward"], right["choice_kl"] - left["choice_kl"]
    return rise / run if run else float("inf")
