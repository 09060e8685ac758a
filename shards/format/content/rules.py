"""The rules of docs/format.md about a row, one function each; for readers, the writer and `shards.verify`.

A function yields at most one line per column: its first fault and how many more there are. The rules of a stage rely
on all earlier stages, so a row is checked up to the first stage with a fault.

Dimensions as in `shards.format.scores`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from shards.format import schema
from shards.format.content.tolerances import (
    TAIL_TOLERANCE,
    highest_logprob,
    mass_tolerance,
    step_nats,
    tail_step_nats,
)
from shards.format.nodes import LARGEST_DISTANCE, interpolate
from shards.format.plan import Plan
from shards.format.schema import Column
from shards.format.scores import Response, Scores, segment_logsumexp, segment_starts

NEIGHBOURS = 4
"""How much the error of stored log partitions may grow when a chord is extended."""

RESPONSE_KINDS = ("chosen", "rejected", "completion")


def shape_faults(row: Mapping[str, Any], plan: Plan, table: Iterable[Column]) -> Iterator[tuple[int, str]]:
    """(rule, fault) of a row by columns, those of `table`, before it is decoded: decoding relies on these rules."""
    yield from ((10, text) for text in lengths(row, plan, table))
    yield from ((13, text) for text in counts(row, plan))


def faults(response: Response, plan: Plan) -> Iterator[tuple[int, str]]:
    """(rule, fault) of a row without faults of its shape, up to the first stage with a fault."""
    for stage in STAGES:
        found = [(rule, text) for rule, check in stage for text in check(response, plan)]
        yield from found
        if found:
            return


def lengths(row: Mapping[str, Any], plan: Plan, table: Iterable[Column]) -> Iterator[str]:
    """Rule 10: list columns have the lengths of their level."""
    tokens, positions = len(row[schema.INPUT_IDS]), int(np.sum(row[schema.LOSS_MASK]))
    if positions < 1:
        yield f"{schema.LOSS_MASK}: expected a response token, got none"
    entries = int(np.sum(row[schema.SUPPORT_COUNT], dtype=np.int64))
    nodes = positions * (len(plan.nodes) - 1)
    expected = {"token": tokens, "position": positions, "node": nodes, "entry": entries}
    for column in table:
        if column.level != "row" and len(row[column.name]) != expected[column.level]:
            yield f"{column.name}: expected {expected[column.level]} values, got {len(row[column.name])}"


def counts(row: Mapping[str, Any], plan: Plan) -> Iterator[str]:
    """Rule 13: 1 <= K_t <= V."""
    count_N, size = row[schema.SUPPORT_COUNT], plan.vocabulary_size
    wrong_N = (count_N < 1) | (count_N > size)
    yield from _first(wrong_N, schema.SUPPORT_COUNT, expected=f"1 to {size}", got=count_N)


def legal_names(pair_id: int) -> tuple[str, ...]:
    """The names that a response of this pair may have."""
    return tuple(f"{pair_id}/{kind}" for kind in RESPONSE_KINDS)


def names(response: Response, plan: Plan) -> Iterator[str]:
    """Rule 9: sample_id, pair_id and chosen agree. (`names.SeenNames` checks that names are unique.)"""
    legal = legal_names(response.pair_id)
    if response.pair_id < 0:
        yield f"{schema.PAIR_ID}: expected 0 or more, got {response.pair_id}"
    elif response.sample_id not in legal:
        yield f"{schema.SAMPLE_ID}: expected one of {', '.join(legal)}, got {response.sample_id!r}"
    elif response.chosen == response.sample_id.endswith("/rejected"):
        yield f"{schema.CHOSEN}: expected {not response.chosen} for {response.sample_id}, got {response.chosen}"


def mask(response: Response, plan: Plan) -> Iterator[str]:
    """Rule 11: the first response token is in the row, and the mask is false before it and at the row's first token."""
    tokens, start = len(response.input_ids), response.response_start
    if not 0 <= start < tokens:
        yield f"{schema.RESPONSE_START}: expected an index under {tokens}, got {start}"
    elif response.loss_mask[: max(start, 1)].any():
        first = int(np.flatnonzero(response.loss_mask)[0])
        yield f"{schema.LOSS_MASK}: expected false before token {max(start, 1)}, got true at token {first}"


def token_ids(response: Response, plan: Plan) -> Iterator[str]:
    """Rule 12: input_ids are in [0, V)."""
    ids_T, size = response.input_ids, plan.vocabulary_size
    wrong_T = (ids_T < 0) | (ids_T >= size)
    yield from _first(wrong_T, schema.INPUT_IDS, expected=f"ids under {size}", got=ids_T, unit="token")


def support(response: Response, plan: Plan) -> Iterator[str]:
    """Rule 13: a position's kept ids ascend strictly in [0, V). (`counts` checks their number.)"""
    ids_M, size, position_M = response.scores.support_ids, plan.vocabulary_size, _positions(response.scores)
    falls_M = np.append(False, (np.diff(ids_M) <= 0) & (np.diff(position_M) == 0))
    wrong_M = (ids_M < 0) | (ids_M >= size) | falls_M
    yield from _first(
        wrong_M, schema.SUPPORT_IDS, expected=f"ascending ids under {size}", got=ids_M, positions=position_M
    )


def finite(response: Response, plan: Plan) -> Iterator[str]:
    """Rule 14: every value is finite, except that tail columns are -inf exactly if K_t == V."""
    scores = response.scores
    distances = [(schema.l1_distance_column(n), distance_N, None) for n, distance_N in scores.l1_distance.items()]
    for name, values, position in [*_logprobs(scores), *distances]:
        yield from _first(~np.isfinite(values), name, expected="finite values", got=values, positions=position)
    full_N = scores.support_count == plan.vocabulary_size
    for name, tail_NI in _tails(scores):
        wrong_N = ~full_N & ~np.isfinite(tail_NI).all(axis=1)
        yield from _first(wrong_N, name, expected="finite values beside kept tokens", got=tail_NI)
        wrong_N = full_N & ~np.isneginf(tail_NI).all(axis=1)
        yield from _first(wrong_N, name, expected="-inf where all tokens are kept", got=tail_NI)


def logprobs(response: Response, plan: Plan) -> Iterator[str]:
    """Rule 15: no log-prob exceeds 0."""
    tails = [(schema.tail_logprob_column(role), tail_N, None) for role, tail_N in response.scores.tail_logprob.items()]
    for name, values, position in [*_logprobs(response.scores), *tails]:
        wrong = values > highest_logprob(plan)
        yield from _first(wrong, name, expected="0 or less", got=values, positions=position)


def mass(response: Response, plan: Plan) -> Iterator[str]:
    """Rule 16: under every role the kept tokens and the tail have a total mass of 1."""
    scores = response.scores
    for role, logprobs_M in scores.logprobs.items():
        kept_N = segment_logsumexp(logprobs_M.astype(np.float64), scores.support_count)
        total_N = np.exp(np.logaddexp(kept_N, scores.tail_logprob[role]))
        wrong_N = np.abs(total_N - 1) > mass_tolerance(scores.support_count, plan)
        yield from _first(wrong_N, schema.logprobs_column(role), expected="a mass of 1 with the tail's", got=total_N)


def next_token(response: Response, plan: Plan) -> Iterator[str]:
    """Rule 17: the next token's log-prob is the kept one if the token is kept, else at most the tail's."""
    scores = response.scores
    position_M = _positions(scores)
    kept_M = scores.support_ids == response.input_ids[response.loss_mask][position_M]
    kept_N = np.zeros(scores.num_positions, dtype=bool)
    kept_N[position_M[kept_M]] = True
    for role, next_N in scores.next_logprob.items():
        name, tail_N, stored_N = schema.next_logprob_column(role), scores.tail_logprob[role], next_N.copy()
        stored_N[position_M[kept_M]] = scores.logprobs[role][kept_M]
        yield from _first(next_N != stored_N, name, expected=stored_N, got=next_N)
        wrong_N = ~kept_N & (next_N > tail_N + TAIL_TOLERANCE + step_nats(plan))
        yield from _first(wrong_N, name, expected=tail_N, bound=" or less", got=next_N)


def l1_distance(response: Response, plan: Plan) -> Iterator[str]:
    """Rule 18: D_t is within the smallest and largest distance that the kept and tail masses allow."""
    scores = response.scores
    starts_N = segment_starts(scores.support_count)
    for negative, distance_N in scores.l1_distance.items():
        name = schema.l1_distance_column(negative)
        dpo_M, other_M = (np.exp(scores.logprobs[role], dtype=np.float64) for role in ("dpo", negative))
        dpo_N, other_N = (np.exp(scores.tail_logprob[role], dtype=np.float64) for role in ("dpo", negative))
        kept_N = np.add.reduceat(np.abs(dpo_M - other_M), starts_N)
        lowest_N = kept_N + np.abs(dpo_N - other_N)
        tolerance_N = 2 * mass_tolerance(scores.support_count, plan)
        wrong_N = (distance_N < 0) | (distance_N < lowest_N - tolerance_N)
        yield from _first(wrong_N, name, expected=lowest_N, bound=" or more", got=distance_N)
        highest_N = np.minimum(kept_N + dpo_N + other_N, LARGEST_DISTANCE)
        wrong_N = distance_N > highest_N + tolerance_N
        yield from _first(wrong_N, name, expected=highest_N, bound=" or less", got=distance_N)


def tail(response: Response, plan: Plan) -> Iterator[str]:
    """Rule 19: the tail's log partition is convex in the strength, and equals dpo's tail if the teacher is dpo."""
    scores = response.scores
    some_N = np.flatnonzero(scores.support_count < plan.vocabulary_size)
    for pair, stored_NI in scores.tail_logpartition.items():
        name = schema.tail_logpartition_column(pair)
        nodes_NJ = plan.nodes.at(scores.l1_distance[pair.negative][some_N])
        anchor_N1 = scores.tail_logprob[pair.anchor][some_N, None]
        values_NJ = np.concatenate([anchor_N1, stored_NI[some_N]], axis=1, dtype=np.float64)
        allowed_N = TAIL_TOLERANCE * (1 + np.abs(values_NJ).max(axis=1, initial=0) / 100) + tail_step_nats(plan)
        wrong_N = _convexity_excess(nodes_NJ, values_NJ) > allowed_N
        yield from _first(wrong_N, name, expected="convex values", got=values_NJ, positions=some_N)
        if pair.anchor == pair.negative and plan.nodes.strengths[-1] >= 1:
            dpo_N = scores.tail_logprob["dpo"][some_N]
            _, lower_N, upper_N = interpolate(nodes_NJ, values_NJ, np.ones(len(nodes_NJ)))
            allowed_N += NEIGHBOURS * tail_step_nats(plan)
            wrong_N = (dpo_N < lower_N - allowed_N) | (dpo_N > upper_N + allowed_N)
            yield from _first(
                wrong_N, name, expected=dpo_N, bound=" at strength 1, dpo's tail", got=upper_N, positions=some_N
            )


RowRule = Callable[[Response, Plan], Iterator[str]]
STAGES: tuple[tuple[tuple[int, RowRule], ...], ...] = (
    ((9, names), (11, mask), (12, token_ids), (13, support)),
    ((14, finite),),
    ((15, logprobs), (16, mass), (17, next_token), (18, l1_distance), (19, tail)),
)


def _convexity_excess(nodes_NJ: np.ndarray, values_NJ: np.ndarray) -> np.ndarray:
    """The most by which a value is above the chord of its two neighbours, (N,), nats; negative if convex."""
    left_NI, middle_NI, right_NI = nodes_NJ[:, :-2], nodes_NJ[:, 1:-1], nodes_NJ[:, 2:]
    share_NI = (middle_NI - left_NI) / (right_NI - left_NI)
    chord_NI = (1 - share_NI) * values_NJ[:, :-2] + share_NI * values_NJ[:, 2:]
    return (values_NJ[:, 1:-1] - chord_NI).max(axis=1)


def _positions(scores: Scores) -> np.ndarray:
    """The position of each kept token, (M,)."""
    return np.repeat(np.arange(scores.num_positions), scores.support_count)


def _logprobs(scores: Scores) -> Iterator[tuple[str, np.ndarray, np.ndarray | None]]:
    """Columns of log-probs of tokens: name, values and their positions."""
    position_M = _positions(scores)
    for role, values in scores.logprobs.items():
        yield schema.logprobs_column(role), values, position_M
    for role, values in scores.next_logprob.items():
        yield schema.next_logprob_column(role), values, None


def _tails(scores: Scores) -> Iterator[tuple[str, np.ndarray]]:
    """Columns that are -inf if nothing is outside the support: name and (N, values of a position)."""
    for role, tail_N in scores.tail_logprob.items():
        yield schema.tail_logprob_column(role), tail_N[:, None]
    for pair, tail_NI in scores.tail_logpartition.items():
        yield schema.tail_logpartition_column(pair), tail_NI


def _first(
    wrong: np.ndarray,
    column: str,
    *,
    expected: str | np.ndarray,
    got: np.ndarray,
    bound: str = "",
    positions: np.ndarray | None = None,
    unit: str = "position",
) -> Iterator[str]:
    """One line for the first fault of a column, with their number; `positions`: of each value, default its index."""
    found = np.flatnonzero(wrong)
    if not len(found):
        return
    i = int(found[0])
    wanted = expected if isinstance(expected, str) else f"{expected[i]:.6g}"
    values = ", ".join(f"{value:.6g}" for value in np.atleast_1d(got[i]))
    more = f" ({len(found)} such values)" if len(found) > 1 else ""
    yield f"{column}: expected {wanted}{bound}, got {values} at {unit} {i if positions is None else positions[i]}{more}"
