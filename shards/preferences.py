"""Cached preference pairs: which rows they are, how likely a teacher finds them, and the strength that they teach.

Dimensions: P pairs, R responses, N response positions.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from tqdm.auto import tqdm

from shards.compose import compose
from shards.errors import DataError, TeacherUnavailable
from shards.learned import fit_learned, log_sigmoid, margins, region
from shards.nodes import StrengthNodes
from shards.ratio_file import RatioFile
from shards.ratio_table import Block, tabulate
from shards.reader import ShardCache
from shards.sample import QUIET_SECONDS
from shards.schema import Pair
from shards.scores import Scores, segment_starts
from shards.selection import Selection
from shards.statistics import LogHistogram
from shards.teacher import MIN_STRENGTH, TeacherSpec, learned_strength

BLOCK_POSITIONS = 4_096
"""Pairs are gone through in blocks of about so many positions; a block takes some 25 MiB while it is tabulated."""
STRENGTH_BINS = 60_000
"""Of a histogram from 1e-3 to 1e3: a quantile of the strength is off by 0.02% at most."""


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
    strength_quantiles    10%, 50% and 90% of w_t over the positions, to three digits
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
    index = cache.index
    chosen, rejected = np.flatnonzero(index.chosen), np.flatnonzero(~index.chosen)
    both, of_chosen, of_rejected = np.intersect1d(index.pair_id[chosen], index.pair_id[rejected], return_indices=True)
    if not len(both):
        raise DataError(
            f"{cache.folder}: expected pairs of a chosen and a rejected response, found none; "
            "build with --responses both"
        )
    rows_P2 = np.stack([chosen[of_chosen], rejected[of_rejected]], axis=1)
    return PreferencePairs(pair_id=both.astype(np.int64), rows=rows_P2)


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
    positions = sum(int(cache.index.num_positions[pairs.rows].sum()) for cache, pairs in pairs_by_cache)
    with RatioFile(nodes, positions) as blocks:
        for cache, pairs in pairs_by_cache:
            for scores, sizes_R in _blocks(cache, pairs, [spec.pair], "reading the pairs"):
                blocks.append(tabulate(scores, sizes_R, spec.pair, nodes))
        offset, slope = fit_learned(blocks, nodes)
        return _judged(blocks, replace(spec, learned_offset=offset, learned_slope=slope), nodes)


def _judged(blocks: Iterable[Block], spec: TeacherSpec, nodes: StrengthNodes) -> LearnedFit:
    """What the fitted teacher makes of the pairs that it was fitted on."""
    assert spec.learned_offset is not None and spec.learned_slope is not None
    strengths = LogHistogram(1e3, STRENGTH_BINS, low=MIN_STRENGTH)
    pairs, right, likelihood, bounded = 0, 0.0, 0.0, 0
    for table, pairs_P2 in blocks:
        highest_N = table.knots[:, -1]
        strength_N = learned_strength(table.distance, spec.learned_offset, spec.learned_slope, highest_N)
        margins_P = margins(table, pairs_P2, strength_N)
        strengths.add(strength_N)
        bounded += int((strength_N == highest_N).sum())
        right += accuracy(margins_P) * len(margins_P)
        likelihood += float(log_sigmoid(margins_P).sum())
        pairs += len(margins_P)
    low, median, high = (float(f"{strengths.quantile(q):.3g}") for q in (0.1, 0.5, 0.9))
    return LearnedFit(
        spec=spec,
        pairs=pairs,
        accuracy=right / pairs,
        log_likelihood=likelihood / pairs,
        at_edge=bool(np.any(np.abs(region(nodes) - [spec.learned_offset, spec.learned_slope]) < 1e-3)),
        strength_quantiles=(low, median, high),
        bounded_share=bounded / strengths.count,
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
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("reference", "dpo", *specs)}
    for scores, sizes_R in _blocks(cache, pairs, {spec.pair for spec in specs.values()}, "judging the pairs"):
        for name, values_N in log_ratios(scores, specs, cache.plan.nodes).items():
            ratio_P2 = np.add.reduceat(values_N, segment_starts(sizes_R)).reshape(-1, 2)
            found[name].append(ratio_P2[:, 0] - ratio_P2[:, 1])
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _blocks(
    cache: ShardCache, pairs: PreferencePairs, served: Iterable[Pair], description: str
) -> Iterator[tuple[Scores, np.ndarray]]:
    """The scores of some pairs at a time, the chosen response of each before the rejected, and each one's positions."""
    selection = replace(Selection.everything(cache.plan, pairs=served), names=False)
    sizes_P2 = cache.index.num_positions[pairs.rows]
    block_P = np.cumsum(sizes_P2.sum(axis=1)) // BLOCK_POSITIONS
    starts = np.flatnonzero(np.diff(block_P, prepend=-1))
    with tqdm(total=len(pairs), unit="pair", desc=description, delay=QUIET_SECONDS, leave=False) as bar:
        for start, stop in pairwise([*starts.tolist(), len(pairs)]):
            _, scores = cache.read_joined(pairs.rows[start:stop].ravel().tolist(), selection)
            yield scores, sizes_P2[start:stop].ravel()
            bar.update(stop - start)
