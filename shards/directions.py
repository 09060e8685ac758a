"""Do the models of a cache prefer what their roles say? Asked of the cached log-probs of the responses themselves.

The implicit reward of a response under a role is sum_t [l_role(y_t) - l_reference(y_t)], as in DPO (Rafailov et al.
2023), whose loss is its margin's: dpo should give the chosen response of a pair the larger one, reverse the rejected.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shards.reader import ShardCache
from shards.sample import chunks, spread
from shards.schema import Role

SAMPLE_ROWS = 500
"""Rows that are asked, with their neighbours; a share of one half has a standard error of 2% then."""

Rewards = dict[tuple[int, bool], Mapping[Role, float]]
"""(pair_id, whether chosen) -> the implicit rewards of dpo and reverse, nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """In how many of `count` cases a model prefers what it should; a tie is half a case."""

    claim: str
    share: float
    count: int
    unit: str

    @property
    def holds(self) -> bool:
        return self.share > 0.5

    def __str__(self) -> str:
        text = f"{self.claim} in {self.share:.1%} of {self.count:,} {self.unit}"
        return text if self.holds else f"warning: {text}, expected over a half"


def measure_directions(cache: ShardCache) -> list[Direction]:
    """What dpo and reverse prefer on a fixed sample of the cache.

    Where it holds both responses of pairs, each role is asked for itself. Where it holds one of each, dpo is compared
    with reverse: DPO may well make a chosen response less likely than the reference does, but less so than reverse.
    With neither pairs nor reverse nothing can be told.
    """
    rewards = _implicit_rewards(cache, _with_neighbours(spread(len(cache), SAMPLE_ROWS), len(cache)))
    roles = [role for role in ("dpo", "reverse") if role in cache.plan.roles]
    paired = [pair_id for pair_id, chosen in rewards if chosen and (pair_id, False) in rewards]
    if paired:
        return [_pairs(role, rewards, paired) for role in roles]
    return [_responses(rewards)] if "reverse" in roles else []


def _pairs(role: Role, rewards: Rewards, paired: Sequence[int]) -> Direction:
    margins = [rewards[pair_id, True][role] - rewards[pair_id, False][role] for pair_id in paired]
    wanted, sign = ("chosen", 1) if role == "dpo" else ("rejected", -1)
    return Direction(
        claim=f"{role} prefers the {wanted} response",
        share=_share_positive([sign * margin for margin in margins]),
        count=len(paired),
        unit="pairs",
    )


def _responses(rewards: Rewards) -> Direction:
    kind = next(chosen for _, chosen in rewards)
    margins = [row["dpo"] - row["reverse"] for (_, chosen), row in rewards.items() if chosen == kind]
    if kind:
        claim, share = "dpo finds the chosen response likelier than reverse does", _share_positive(margins)
    else:
        claim, share = "reverse finds the rejected response likelier than dpo does", 1 - _share_positive(margins)
    return Direction(claim=claim, share=share, count=len(margins), unit="responses")


def _share_positive(values: Sequence[float]) -> float:
    return float(np.mean((np.sign(values) + 1) / 2))


def _implicit_rewards(cache: ShardCache, rows: list[int]) -> Rewards:
    rewards: Rewards = {}
    for chunk in chunks(rows, "asking the models what they prefer"):
        for response in cache.read(chunk, pairs=()):
            sums = {role: float(values.sum(dtype=np.float64)) for role, values in response.scores.next_logprob.items()}
            rewards[response.pair_id, response.chosen] = {role: sums[role] - sums["reference"] for role in sums}
    return rewards


def _with_neighbours(rows: list[int], total: int) -> list[int]:
    """The two responses of a pair stand next to each other."""
    return sorted({near for row in rows for near in (row - 1, row, row + 1) if 0 <= near < total})
