"""Cached preference pairs: which rows they are, how likely a teacher finds them, and the strength that they teach.

Dimensions: P pairs, R responses, N response positions.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from shards.compose import compose
from shards.errors import DataError, TeacherUnavailable
from shards.learned import RatioTable, concatenate_tables, fit_learned, log_sigmoid, margins, region, tabulate
from shards.nodes import StrengthNodes
from shards.reader import ShardCache
from shards.schema import Pair
from shards.scores import Scores, concatenate, segment_starts
from shards.teacher import TeacherSpec, learned_strength

ROWS_AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePairs:
    """The pairs of a cache: pair_id (P,), ascending, and the rows of their responses (P, 2), chosen and rejected."""

    pair_id: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.pair_id)

    def where(self, wanted_P: np.ndarray) -> "PreferencePairs":
        return PreferencePairs(pair_id=self.pair_id[wanted_P], rows=self.rows[wanted_P])


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedFit:
    """A fitted teacher, and figures of the fit on its own pairs.

    log_likelihood        mean over the pairs, nats; -0.693 is a coin's
    at_edge               whether a fitted number lies at the edge of the region that was searched
    strength_quantiles    10%, 50% and 90% of w_t over the positions
    bounded_share         share of the positions whose strength is the last node
    """

    spec: TeacherSpec
    pairs: int
    accuracy: float
    log_likelihood: float
    at_edge: bool
    strength_quantiles: tuple[float, float, float]
    bounded_share: float

    def __str__(self) -> str:
        low, median, high = self.strength_quantiles
        edge = "; at the edge of the region searched" if self.at_edge else ""
        return (
            f"offset {self.spec.learned_offset}, slope {self.spec.learned_slope}, fitted on {self.pairs:,} pairs{edge}:"
            f" {self.log_likelihood:.4f} nats per pair, accuracy {self.accuracy:.3f}; w 10% {low:.3g}, median "
            f"{median:.3g}, 90% {high:.3g}, at the last node {self.bounded_share:.1%}"
        )


def find_pairs(cache: ShardCache) -> PreferencePairs:
    """The pairs both of whose responses the cache holds. Raises DataError where there is none."""
    chosen, rejected = np.flatnonzero(cache.index.chosen), np.flatnonzero(~cache.index.chosen)
    pair_id = cache.index.pair_id
    both, of_chosen, of_rejected = np.intersect1d(pair_id[chosen], pair_id[rejected], return_indices=True)
    if not len(both):
        raise DataError(
            f"{cache.folder}: expected pairs of a chosen and a rejected response, found none; "
            "build with --responses both"
        )
    return PreferencePairs(pair_id=both, rows=np.stack([chosen[of_chosen], rejected[of_rejected]], axis=1))


def held_out(pair_id_P: np.ndarray, share: float) -> np.ndarray:
    """Which pairs are kept apart, (P,) bool: of each a pure function of its number, about `share` of them in all."""
    digests = (hashlib.sha256(str(int(pair_id)).encode()).digest()[:8] for pair_id in pair_id_P)
    return np.array([int.from_bytes(digest, "big") < share * 2**64 for digest in digests], dtype=bool)


def accuracy(margins_P: np.ndarray) -> float:
    """Share of the pairs whose chosen response has the larger R; a tie is half a pair."""
    return float(np.mean((np.sign(margins_P) + 1) / 2))


def fit(pairs_by_cache: Sequence[tuple[ShardCache, PreferencePairs]], spec: TeacherSpec) -> LearnedFit:
    """The teacher of `spec`, whose strength is `learned`, with its two numbers fitted to the pairs of some caches.

    The caches have the same nodes. Raises TeacherUnavailable where one does not serve the spec's anchor and negative,
    and DataError as `fit_learned`.
    """
    assert spec.strength == "learned" and pairs_by_cache
    for cache, _ in pairs_by_cache:
        lacking = cache.plan.lacks_pair(spec)
        if lacking is not None:
            raise TeacherUnavailable(f"{cache.folder}: {lacking}")
    nodes = pairs_by_cache[0][0].plan.nodes
    tables = [_table(cache, pairs, spec.pair) for cache, pairs in pairs_by_cache]
    firsts = np.cumsum([0, *(table.num_responses for table in tables[:-1])])
    table = concatenate_tables(tables)
    pairs_P2 = np.concatenate(
        [_responses(pairs)[1] + first for (_, pairs), first in zip(pairs_by_cache, firsts, strict=True)]
    )
    offset, slope = fit_learned(table, pairs_P2, nodes)
    strength_N = learned_strength(table.distance, offset, slope, table.knots[:, -1])
    margins_P = margins(table, pairs_P2, strength_N)
    low, median, high = np.quantile(strength_N, (0.1, 0.5, 0.9)).tolist()
    return LearnedFit(
        spec=replace(spec, learned_offset=offset, learned_slope=slope),
        pairs=len(pairs_P2),
        accuracy=accuracy(margins_P),
        log_likelihood=float(log_sigmoid(margins_P).mean()),
        at_edge=bool(np.any(np.abs(region(nodes) - [offset, slope]) < 1e-3)),
        strength_quantiles=(low, median, high),
        bounded_share=float((strength_N == table.knots[:, -1]).mean()),
    )


def log_ratios(scores: Scores, specs: Mapping[str, TeacherSpec], nodes: StrengthNodes) -> dict[str, np.ndarray]:
    """log p(y_t) - l_ref(y_t) of the actual next tokens, (N,), nats, of dpo and of each of the named teachers; of the
    reference its log-prob l_ref(y_t) itself."""
    reference_N = scores.next_logprob["reference"].astype(np.float64)
    found = {"reference": reference_N, "dpo": scores.next_logprob["dpo"] - reference_N}
    for name, spec in specs.items():
        next_N = compose(scores, spec, nodes).next_logprob
        assert next_N is not None, "all that is stored was read"
        found[name] = next_N - reference_N
    return found


def preference_margins(
    cache: ShardCache, pairs: PreferencePairs, specs: Mapping[str, TeacherSpec]
) -> dict[str, np.ndarray]:
    """R(chosen) - R(rejected) of each pair, (P,), nats, under each of the named teachers, composed as a student reads
    them, and under the models alone.

    `reference`: R is the response's log-prob, sum_t l_ref(y_t); `dpo`: sum_t [l_dpo(y_t) - l_ref(y_t)]. The caller has
    checked that the cache serves the teachers.
    """
    rows_R, pairs_P2 = _responses(pairs)
    ratios: dict[str, list[np.ndarray]] = {name: [] for name in ("reference", "dpo", *specs)}
    for scores, sizes in _blocks(cache, rows_R, {spec.pair for spec in specs.values()}):
        for name, values_N in log_ratios(scores, specs, cache.plan.nodes).items():
            ratios[name].append(np.add.reduceat(values_N, segment_starts(sizes)))
    joined = {name: np.concatenate(parts)[pairs_P2] for name, parts in ratios.items()}
    return {name: ratio_P2[:, 0] - ratio_P2[:, 1] for name, ratio_P2 in joined.items()}


def _responses(pairs: PreferencePairs) -> tuple[np.ndarray, np.ndarray]:
    """The rows of all responses, ascending (R,), and each pair's two as indices into them (P, 2)."""
    rows_R = np.sort(pairs.rows, axis=None)
    return rows_R, np.searchsorted(rows_R, pairs.rows)


def _table(cache: ShardCache, pairs: PreferencePairs, pair: Pair) -> RatioTable:
    rows_R, _ = _responses(pairs)
    return concatenate_tables(
        [tabulate(scores, sizes, pair, cache.plan.nodes) for scores, sizes in _blocks(cache, rows_R, [pair])]
    )


def _blocks(cache: ShardCache, rows_R: np.ndarray, pairs: Iterable[Pair]) -> Iterator[tuple[Scores, np.ndarray]]:
    """The scores of some rows at a time, one after the other, with the positions of each row."""
    pairs = tuple(pairs)
    for start in range(0, len(rows_R), ROWS_AT_ONCE):
        responses = cache.read(rows_R[start : start + ROWS_AT_ONCE].tolist(), pairs=pairs)
        parts = [response.scores for response in responses]
        yield concatenate(parts), np.array([part.num_positions for part in parts])
