"""The verdict on a cache for a teacher: one word, and for every broken rule what helps. Pure."""

from collections.abc import Iterator
from typing import Literal

import numpy as np

from shards.format.nodes import StrengthNodes
from shards.teacher.spec import Strength
from shards.teacher.trust import (
    EQUAL_DISTANCE,
    GOOD_COVERAGE,
    LOOSE_NATS,
    LOW_COVERAGE,
    MANY_EQUAL,
    MANY_STRONG,
    MUCH_WEAK_LOSS,
    SOME_LOOSE,
    SOME_STRONG,
    STRONG,
    VERY_LOOSE_NATS,
    WEAK,
    Trust,
)

Word = Literal["good", "usable with care", "not good"]
WORDS: tuple[Word, ...] = ("good", "usable with care", "not good")

REMEDIES: dict[Strength, tuple[str, str]] = {
    "adaptive": ("a lower --gain", "a larger --gain"),
    "constant": ("a larger --kl_coef", "a smaller --kl_coef"),
    "learned": ("a lower --learned_offset", "a larger --learned_offset"),
}
"""The flags that lower and raise a strength at every position."""

Fault = tuple[int, str]
"""A broken rule: its level, 1 for care and 2 for not good, and what is wrong."""


def verdict(trust: Trust) -> tuple[Word, tuple[str, ...]]:
    """(word, reasons): the worst level of all rules, and for each broken one what is wrong and what helps."""
    faults = [*_coverage(trust), *(_equal(trust) or _strength(trust))]
    return WORDS[max((level for level, _ in faults), default=0)], tuple(
        text for _, text in sorted(faults, reverse=True)
    )


def finer_nodes(trust: Trust) -> StrengthNodes:
    """The nodes with one more, in the interval whose positions have most of the bound: at the teacher's own strength if
    that is in the interval, else half way."""
    j = int(np.argmax(trust.interval_bound))
    spec, nodes = trust.spec, trust.nodes
    gain = spec.gain if spec.strength == "adaptive" else None
    strength = spec.constant_strength if spec.strength == "constant" else None
    return StrengthNodes(gains=_inserted(nodes.gains, j, gain), strengths=_inserted(nodes.strengths, j, strength))


def _coverage(trust: Trust) -> Iterator[Fault]:
    who = min(("teacher", "reference"), key=lambda name: trust.mean(f"coverage_{name}"))
    coverage = trust.mean(f"coverage_{who}")
    if coverage < GOOD_COVERAGE:
        text = (
            f"the kept tokens hold {coverage:.3f} of the {who}'s mass, under {GOOD_COVERAGE:g}: build with a larger "
            "--top_k (and --max_top_k)"
        )
        yield 1 + (coverage < LOW_COVERAGE), text


def _equal(trust: Trust) -> list[Fault]:
    """Two equal models: no strength has any effect, so no other rule about the strength is checked."""
    if trust.equal_share <= MANY_EQUAL:
        return []
    anchor, negative = trust.spec.pair
    text = (
        f"dpo and {negative} are the same model, or nearly: D_t is under {EQUAL_DISTANCE:g} at {trust.equal_share:.1%} "
        f"of the positions, {trust.mean('l1_distance'):.1g} on average. The teacher is its anchor, {anchor}, whatever "
        "the gain or strength: build from two models that differ"
    )
    return [(2, text)]


def _strength(trust: Trust) -> Iterator[Fault]:
    """Nodes too far apart, positions too strong, positions too weak."""
    bound, (lower, _) = trust.mean("logprob_bound"), REMEDIES[trust.spec.strength]
    if bound > LOOSE_NATS or trust.loose_share > SOME_LOOSE:
        finer = finer_nodes(trust)
        flags = f"--gain_nodes {_numbers(finer.gains)} --strength_nodes {_numbers(finer.strengths)}"
        text = (
            f"log p* may be {bound:.2g} nat off between nodes, over {LOOSE_NATS:g} at {trust.loose_share:.1%} of the "
            f"positions: build with {flags}"
        )
        yield 1 + (bound > VERY_LOOSE_NATS), text
    if trust.strong_share > SOME_STRONG:
        text = (
            f"{trust.strong_share:.1%} of the positions have a strength over {STRONG:g}, more than {SOME_STRONG:.0%}: "
            f"train with {lower}"
        )
        yield 1 + (trust.strong_share > MANY_STRONG), text
    if trust.weak_loss_share > MUCH_WEAK_LOSS:
        cap = trust.spec.max_weight
        capped = "" if cap is None else f" with weights of no more than {cap:g}"
        text = (
            f"positions with a strength under {WEAK:g} carry {trust.weak_loss_share:.0%} of the loss{capped}, "
            f"more than {MUCH_WEAK_LOSS:.0%}: they pull the student to the anchor; {_against_weakness(trust)}"
        )
        yield 1, text


def _against_weakness(trust: Trust) -> str:
    """What helps at weak positions: a larger strength, unless the models agree there."""
    spec, stuck = trust.spec, trust.stuck_loss_share
    if spec.strength != "adaptive" or stuck <= MUCH_WEAK_LOSS:
        return f"train with {REMEDIES[spec.strength][1]}"
    most = trust.nodes.gains[-1]
    cap = "--max_weight" if spec.max_weight is None else "a lower --max_weight"
    return (
        f"those where dpo and {spec.negative} agree carry {stuck:.0%}, and no --gain up to {most:g} changes that; "
        f"{cap} or a larger --min_strength lowers their weight"
    )


def _inserted(nodes: tuple[float, ...], j: int, wanted: float | None) -> tuple[float, ...]:
    """The nodes with one more between j and j + 1: `wanted` if it is between them, else half way."""
    below, above = nodes[j], nodes[j + 1]
    new = wanted if wanted is not None and below < wanted < above else (below + above) / 2
    return (*nodes[: j + 1], new, *nodes[j + 1 :])


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)
