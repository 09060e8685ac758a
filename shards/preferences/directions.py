"""Checks on cached pairs that dpo prefers chosen responses and reverse prefers rejected ones.

The implicit reward of a response under a role is sum_t [l_role(y_t) - l_reference(y_t)], as in DPO (Rafailov et al.
2023): dpo should give the chosen response of a pair the larger one, reverse the rejected response.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from shards.cache import ShardCache
from shards.format.schema import Role
from shards.preferences.pairs import accuracy
from shards.spread import chunks, sample

SAMPLE_ROWS = 500
"""Rows of a cache that are read, plus their neighbours; a share of one half then has a standard error of 2%."""

Rewards = dict[tuple[int, bool], Mapping[Role, float]]
"""(pair_id, whether chosen) -> the implicit rewards of dpo and reverse, nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """The share of pairs in which a model prefers the response that it should; a tie counts half."""

    role: Role
    share: float
    pairs: int

    def __str__(self) -> str:
        wanted = "chosen" if self.role == "dpo" else "rejected"
        text = f"{self.role} prefers {wanted} in {self.share:.1%} of {self.pairs:,} pairs"
        return text if self.share > 0.5 else f"warning: {text}, not over a half"


def directions(rewards: Rewards) -> list[Direction]:
    """The directions of dpo and reverse over the pairs with both rewards known; empty if there are none."""
    paired = [(rewards[pair_id, True], rewards[pair_id, False]) for pair_id in _paired(rewards)]
    if not paired:
        return []
    signs: dict[Role, int] = {"dpo": 1, "reverse": -1}
    margins_by_role = {
        role: [sign * (chosen[role] - rejected[role]) for chosen, rejected in paired]
        for role, sign in signs.items()
        if role in paired[0][0]
    }
    return [
        Direction(role=role, share=accuracy(np.array(margins)), pairs=len(paired))
        for role, margins in margins_by_role.items()
    ]


def implicit_rewards(next_logprob: Mapping[Role, np.ndarray]) -> Mapping[Role, float]:
    """The rewards of one response, role (not the reference) -> nats; next_logprob: role -> (N,), of its own tokens."""
    sums = {role: float(values_N.sum(dtype=np.float64)) for role, values_N in next_logprob.items()}
    return {role: total - sums["reference"] for role, total in sums.items() if role != "reference"}


def measure_directions(cache: ShardCache) -> list[Direction]:
    """The directions on a fixed sample of a cache's pairs; empty if the cache has only one response per pair."""
    rewards: Rewards = {}
    for chunk in chunks(_with_neighbours(cache, sample(cache, SAMPLE_ROWS)), "asking what models prefer"):
        for response in cache.read(chunk, pairs=()):
            rewards[response.pair_id, response.chosen] = implicit_rewards(response.scores.next_logprob)
    return directions(rewards)


def _paired(rewards: Rewards) -> list[int]:
    return [pair_id for pair_id, chosen in rewards if chosen and (pair_id, False) in rewards]


def _with_neighbours(cache: ShardCache, rows: list[int]) -> list[int]:
    """The sampled rows and the rows next to them: the two responses of a pair are neighbours.

    Of a cache in a store only those of the same shards: others would be fetched for one row.
    """
    near = sorted({other for row in rows for other in (row - 1, row, row + 1) if 0 <= other < len(cache)})
    if cache.mirror is None:
        return near
    sampled = set(cache.shards_of(rows).tolist())
    return [row for row, shard in zip(near, cache.shards_of(near).tolist(), strict=True) if shard in sampled]
