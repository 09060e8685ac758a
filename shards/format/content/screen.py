"""Cheap checks of what a reader is about to give out: can a value be in it that no row may hold? Pure.

They look at minima, maxima and lengths over all rows at once, and say only yes or no. Where the answer is yes, `rules`
says which row, column and value: it has the last word. Every check here is as lax as its rule, or laxer.

Left to `shards.verify` and to the writer, because they need an exponential or more of every value, or other rows: the
mass of all positions (16; here of the first of each row), the next token's log-prob (17), D_t's bounds by the masses
(18; here 0 and 2), the tail's shape (19), and names that repeat (9).

Dimensions: R rows, T tokens, N positions and M kept tokens over all rows.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate, chain
from operator import itemgetter
from typing import Any

import numpy as np

from shards.format import schema
from shards.format.content.rules import legal_names
from shards.format.content.tolerances import highest_distance, highest_logprob, mass_tolerance
from shards.format.plan import Plan
from shards.format.schema import Column
from shards.format.scores import Scores

Rows = Sequence[Mapping[str, Any]]

LISTS = ("token", "position", "node", "entry")
LOWEST_BITS = int(np.float32(np.finfo(np.float32).min).view(np.int32))
lowest_of, highest_of = (
    np.minimum.reduce,
    np.maximum.reduce,
)  # as an array's min and max, in half the time if it is short


def misshapen(rows: Rows, table: Sequence[Column], plan: Plan) -> bool:
    """Whether a list has not the length of its level, or a number of kept tokens or a D_t is impossible.

    Decoding relies on all of them. rows: as stored, with the columns of `table`.
    """
    count_N = np.concatenate([row[schema.SUPPORT_COUNT] for row in rows])
    if not len(count_N) or not _within(count_N, 1, plan.vocabulary_size):
        return True
    names: dict[str, list[str]] = {level: [] for level in LISTS}
    for column in table:
        if column.level != "row":
            names[column.level].append(column.name)
    values = itemgetter(*chain(*names.values()))
    of_token, of_position, of_node, of_entry = map(len, names.values())
    entries_N, nodes, end, counted = count_N.cumsum(dtype=np.int64), len(plan.nodes) - 1, 0, 0
    for row in rows:
        positions = len(row[schema.SUPPORT_COUNT])
        if positions != np.count_nonzero(row[schema.LOSS_MASK]) or not positions:
            return True
        end += positions
        before, counted = counted, int(entries_N[end - 1])
        expected = (len(row[schema.INPUT_IDS]),) * of_token + (positions,) * of_position
        expected += (positions * nodes,) * of_node + (counted - before,) * of_entry
        if tuple(map(len, values(row))) != expected:
            return True
    distances = [name for name in map(schema.l1_distance_column, schema.NEGATIVES) if name in rows[0]]
    highest = highest_distance(int(highest_of(count_N)), plan)
    return not all(_within(np.concatenate([row[name] for row in rows]), 0, highest) for name in distances)


def wrong_tokens(rows: Rows, plan: Plan) -> bool:
    """Whether token ids, masks, starts or names of rows of the right shape are impossible; where they are read."""
    if schema.INPUT_IDS in rows[0] and not _below(
        np.concatenate([row[schema.INPUT_IDS] for row in rows]), plan.vocabulary_size
    ):
        return True
    return any(map(_wrong_place, rows)) or any(map(_wrong_name, rows))


def wrong_scores(scores: Scores, size_R: Sequence[int], plan: Plan) -> bool:
    """Whether decoded values of rows of the right shape, size_R positions each, are impossible."""
    count_N = scores.support_count
    starts_N = count_N.cumsum() - count_N
    highest = highest_logprob(plan)
    return (
        _unordered(scores.support_ids, starts_N, plan.vocabulary_size)
        or not all(_finite(values_M, highest) for values_M in scores.logprobs.values())
        or not all(_finite(values_N, highest) for values_N in scores.next_logprob.values())
        or _wrong_tails(scores, highest, count_N == plan.vocabulary_size)
        or (bool(scores.logprobs) and _wrong_mass(scores, [0, *accumulate(size_R[:-1])], starts_N, plan))
    )


def _wrong_place(row: Mapping[str, Any]) -> bool:
    """Whether the response starts outside the row, or the mask is true before it or at the row's first token."""
    mask_T, start = row.get(schema.LOSS_MASK), row.get(schema.RESPONSE_START, 0)
    tokens = row.get(schema.INPUT_IDS, mask_T)
    if tokens is not None and not 0 <= start < len(tokens):
        return True
    return mask_T is not None and bool(mask_T[0] or (start > 1 and mask_T[:start].any()))


def _wrong_name(row: Mapping[str, Any]) -> bool:
    pair_id, name = row.get(schema.PAIR_ID, 0), row.get(schema.SAMPLE_ID)
    if pair_id < 0:
        return True
    if name is None or schema.PAIR_ID not in row:
        return False
    return name not in legal_names(pair_id) or row.get(schema.CHOSEN) == name.endswith("/rejected")


def _unordered(ids_M: np.ndarray, starts_N: np.ndarray, size: int) -> bool:
    """Whether ids do not ascend strictly inside a position, from 0 or more to less than `size`."""
    last_N = starts_N[1:] - 1
    rises_M = ids_M[1:] > ids_M[:-1]
    rises_M[last_N] = True
    if not rises_M.all():
        return True
    return bool(lowest_of(ids_M[starts_N]) < 0 or highest_of(ids_M[last_N], initial=ids_M[-1]) >= size)


def _wrong_tails(scores: Scores, highest: float, full_N: np.ndarray) -> bool:
    """Whether a tail is not -inf exactly where all tokens are kept, or another one is not a number or too high."""
    logprobs, partitions = scores.tail_logprob.values(), scores.tail_logpartition.values()
    if not full_N.any():
        return not (all(_finite(v, highest) for v in logprobs) and all(np.isfinite(v).all() for v in partitions))
    for tail_N in logprobs:
        if not highest_of(tail_N) <= highest or ((tail_N == -np.inf) != full_N).any():
            return True
    return not all(np.where(full_N[:, None], np.isneginf(v), np.isfinite(v)).all() for v in partitions)


def _wrong_mass(scores: Scores, some_S: Sequence[int], starts_N: np.ndarray, plan: Plan) -> bool:
    """Whether at these positions the kept tokens and the tail have not a mass of 1, or without a tail more than 1."""
    count_S = scores.support_count[some_S]
    starts_S = count_S.cumsum() - count_S
    places = np.repeat(starts_N[some_S] - starts_S, count_S)
    places += np.arange(len(places))
    roles = sorted(scores.logprobs, key=lambda role: role not in scores.tail_logprob)
    tails = [scores.tail_logprob[role][some_S] for role in roles if role in scores.tail_logprob]
    mass_RS = np.add.reduceat(np.exp([scores.logprobs[role][places] for role in roles]), starts_S, axis=1)
    tolerance = mass_tolerance(int(highest_of(count_S)), plan)
    if tails:
        whole_RS = mass_RS[: len(tails)]
        whole_RS += np.exp(tails)
        if not lowest_of(whole_RS, axis=None) >= 1 - tolerance:
            return True
    return not highest_of(mass_RS, axis=None) <= 1 + tolerance


def _finite(values: np.ndarray, highest: float) -> bool:
    """Whether all values are finite and none is above `highest`; NaN fails every comparison.

    The bits of a float32, read as a signed integer, are at most `LOWEST_BITS` exactly if it is below 0 and finite. So
    one pass is enough, unless a value is 0 or above.
    """
    if values.dtype == np.float32 and highest_of(values.view(np.int32)) <= LOWEST_BITS:
        return True
    return bool(highest_of(values) <= highest and lowest_of(values) > -np.inf)


def _within(values: np.ndarray, low: Any, high: Any) -> bool:
    return bool(lowest_of(values) >= low and highest_of(values) <= high)


def _below(ids: np.ndarray, size: int) -> bool:
    """Whether all ids, int32, are in [0, size): a negative one is a large one without its sign."""
    return bool(highest_of(ids.view(np.uint32)) < size)
