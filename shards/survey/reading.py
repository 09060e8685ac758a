"""Reads what a survey needs of a cache, a few rows at a time: tokens, rewards and D_t, but no kept token.

Dimensions: R rows, T their tokens, N their response positions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shards.cache import ShardCache
from shards.format import schema
from shards.format.encoding import codec
from shards.format.encoding.arrays import Flat
from shards.format.plan import Plan
from shards.format.schema import Role
from shards.progress import progress
from shards.spread import ROWS_AT_A_TIME, spread, spread_in_few
from shards.teacher.spec import contrastive_reward

Block = tuple[int, int]
"""(shard, number in it) of neighbouring record batches that are read together: both responses of a pair, as a rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some neighbouring rows.

    rows            (R,)   their numbers in the cache
    token_starts    (R + 1,)   where each row's tokens begin in input_ids and loss_mask, (T,)
    starts          (R + 1,)   where each row's positions begin in the arrays below
    token_ids       (N,)   the distilled tokens
    next_logprob    role -> (N,)   their log-probs, nats
    l1_distance     negative -> (N,)   D_t
    """

    rows: np.ndarray
    token_starts: np.ndarray
    input_ids: np.ndarray
    loss_mask: np.ndarray
    starts: np.ndarray
    token_ids: np.ndarray
    next_logprob: Mapping[Role, np.ndarray]
    l1_distance: Mapping[Role, np.ndarray]

    def reward(self, negative: Role, beta: float) -> np.ndarray:
        """The contrastive reward of each token, (N,) float64."""
        dpo_N, negative_N = (self.next_logprob[role].astype(np.float64) for role in ("dpo", negative))
        return contrastive_reward(dpo_N, negative_N, beta)


def blocks_within(cache: ShardCache, positions: int) -> list[Block]:
    """All blocks of a cache, or evenly spread ones with about this many response positions.

    A cache in a store that is not read as a whole gives blocks of few shards: each may have to be fetched.
    """
    plan = cache.plan
    ends = np.cumsum([-(-plan.num_batches(shard) // _batches(plan)) for shard in range(len(plan.shards))])
    limit = max(1, int(ends[-1] * min(1.0, positions / plan.positions)))
    in_few = cache.mirror is not None and limit < ends[-1]
    numbers = spread_in_few(ends, limit) if in_few else spread(int(ends[-1]), limit)
    shards = np.searchsorted(ends, numbers, side="right")
    return list(zip(shards.tolist(), (numbers - np.append(0, ends)[shards]).tolist(), strict=True))


def read_parts(cache: ShardCache, blocks: Sequence[Block]) -> Iterator[Part]:
    """The rows of these blocks, one block at a time, with a progress bar if it takes long. Raises CacheDamaged."""
    plan = cache.plan
    tokens = (schema.INPUT_IDS, schema.LOSS_MASK)
    wanted = {*tokens, *_distances(plan).values(), *plan.next_columns()}
    names = [column.name for column in plan.columns() if column.name in wanted]
    for shard, block in progress(blocks, "surveying", unit="block", brief=True):
        first = block * _batches(plan)
        batches = range(first, min(first + _batches(plan), plan.num_batches(shard)))
        found = [cache.batches.read(shard, batch, names) for batch in batches]
        yield _part(
            {name: _joined([part[name] for part in found]) for name in names}, plan.first_row(shard, first), plan
        )


def _part(columns: Mapping[str, Flat], first_row: int, plan: Plan) -> Part:
    ids, mask = columns[schema.INPUT_IDS], columns[schema.LOSS_MASK]
    values, distances = {name: column.values for name, column in columns.items()}, _distances(plan)
    return Part(
        rows=np.arange(first_row, first_row + len(ids.offsets) - 1),
        token_starts=ids.offsets,
        input_ids=ids.values,
        loss_mask=mask.values,
        starts=columns[distances[plan.unit_negative]].offsets,
        token_ids=ids.values[mask.values],
        next_logprob=codec.decode_next(values, plan, plan.roles),
        l1_distance={role: values[name] for role, name in distances.items()},
    )


def _batches(plan: Plan) -> int:
    """Record batches of a block: about ROWS_AT_A_TIME rows."""
    return max(1, ROWS_AT_A_TIME // plan.rows_per_batch)


def _distances(plan: Plan) -> dict[Role, str]:
    return {role: schema.l1_distance_column(role) for role in schema.NEGATIVES if role in plan.roles}


def _joined(parts: Sequence[Flat]) -> Flat:
    """A list column of several record batches as one."""
    begins = np.cumsum([0, *(len(part.values) for part in parts)])
    offsets = [part.offsets[:-1] + begin for part, begin in zip(parts, begins, strict=False)]
    return Flat(np.concatenate([part.values for part in parts]), np.append(np.concatenate(offsets), begins[-1]))
