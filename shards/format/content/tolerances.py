"""How far stored values may be from what the rules say: the error of float32 sums, and of compact codes. Pure."""

from typing import Any

from shards.format.encoding import compact
from shards.format.nodes import LARGEST_DISTANCE
from shards.format.plan import Plan
from shards.format.scores import LOGPROB_TOLERANCE

MASS_TOLERANCE = 2e-4
"""Allowed error of masses that are sums of float32 probabilities (2e-5 was seen with 32,000 tokens)."""
TAIL_TOLERANCE = 1e-4
"""How far a float32 log partition may be from convex, in nats; plus a hundredth of it per nat of its size."""


def highest_logprob(plan: Plan) -> float:
    """The highest log-prob that may be stored, nats."""
    return LOGPROB_TOLERANCE + unit(plan)


def highest_distance(count_N: Any, plan: Plan) -> Any:
    """The highest D_t that may be stored at positions with so many kept tokens, (N,)."""
    return LARGEST_DISTANCE + 2 * mass_tolerance(count_N, plan)


def mass_tolerance(count_N: Any, plan: Plan) -> Any:
    """Allowed error of the mass of kept tokens and tail, (N,): each compact probability is off by less than a unit."""
    return MASS_TOLERANCE + unit(plan) * count_N + tail_step_nats(plan)


def unit(plan: Plan) -> float:
    """The coarsest unit of compact values, a probability; 0 for float32."""
    return 2.0**-compact.UNIT_BITS if plan.values == "compact" else 0.0


def step_nats(plan: Plan) -> float:
    """The largest distance between neighbouring compact log-probs, nats; 0 for float32."""
    return 1 / compact.STEPS_PER_NAT if plan.values == "compact" else 0.0


def tail_step_nats(plan: Plan) -> float:
    """The distance between neighbouring compact tails, nats; 0 for float32."""
    return 1 / compact.TAIL_STEPS_PER_NAT if plan.values == "compact" else 0.0
