"""Cached preference pairs: their rows, their likelihood under a teacher, and the fit of a learned strength.

Dimensions: P pairs, R responses, N response positions.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from shards.cache import ShardCache
from shards.errors import DataError, TeacherUnavailable
from shards.format.encoding.selection import Selection
from shards.format.nodes import StrengthNodes
from shards.format.schema import Pair
from shards.format.scores import Scores, segment_starts
from shards.format.statistics import LogHistogram
from shards.preferences.ratio_file import RatioFile
from shards.preferences.ratio_table import Block, tabulate
from shards.preferences.strength import fit_learned, log_sigmoid, margins, region
from shards.progress import progress
from shards.teacher.compose import compose
from shards.teacher.served import lacks_for_fit
from shards.teacher.spec import TeacherSpec

BLOCK_POSITIONS = 4_096
"""Approximate positions in a block of pairs; its tables take about 25 MiB."""
STRENGTH_BINS = 60_000
"""Bins of a histogram from min_strength to 1e3: a quantile of the strength has an error of 0.04% at most."""


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

    log_likelihood        mean over the pairs, nats; guessing gives -0.693
    at_edge               whether a fitted number is at the edge of the search region
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
    """The pairs with both responses in the cache. Raises DataError if there are none."""
    index = cache.index
    chosen, rejected = np.flatnonzero(index.chosen), np.flatnonzero(~index.chosen)
    both, of_chosen, of_rejected = np.intersect1d(index.pair_id[chosen], index.pair_id[rejected], return_indices=True)
    if not len(both):
        raise DataError(
            f"{cache.name}: expected pairs of a chosen and a rejected response, found none; build with --responses both"
        )
    rows_P2 = np.stack([chosen[of_chosen], rejected[of_rejected]], axis=1)
    return PreferencePairs(pair_id=both.astype(np.int64), rows=rows_P2)


def held_out(pair_id_P: np.ndarray, share: float) -> np.ndarray:
    """Which pairs are held out, (P,) bool: a pure function of each pair's number; about `share` of all."""
    digests = (hashlib.sha256(str(int(pair_id)).encode()).digest()[:8] for pair_id in pair_id_P)
    return np.array([int.from_bytes(digest, "big") < share * 2**64 for digest in digests], dtype=bool)


def accuracy(margins_P: np.ndarray) -> float:
    """Share of the pairs whose chosen response has the larger R; a tie counts half."""
    return float(np.mean((np.sign(margins_P) + 1) / 2))


def fit(pairs_by_cache: Sequence[tuple[ShardCache, PreferencePairs]], spec: TeacherSpec) -> LearnedFit:
    """The teacher of `spec`, whose strength is `learned`, with its two numbers fitted to the pairs of some caches.

    The caches have the same nodes. Raises TeacherUnavailable if one does not serve the spec's anchor, negative and
    min_strength, and DataError as `fit_learned`.
    """
    assert spec.strength == "learned" and pairs_by_cache
    for cache, _ in pairs_by_cache:
        lacking = lacks_for_fit(cache.plan, spec)
        if lacking is not None:
            raise TeacherUnavailable(f"{cache.name}: {lacking}")
    nodes = pairs_by_cache[0][0].plan.nodes
    positions = sum(int(cache.index.num_positions[pairs.rows].sum()) for cache, pairs in pairs_by_cache)
    with RatioFile(nodes, positions, spec.min_strength) as blocks:
        for cache, pairs in pairs_by_cache:
            for scores, sizes_R in _blocks(cache, pairs, [spec.pair], "reading the pairs"):
                blocks.append(tabulate(scores, sizes_R, spec.pair, nodes))
        offset, slope = fit_learned(blocks, nodes)
        return _judged(blocks, replace(spec, learned_offset=offset, learned_slope=slope), nodes)


def _judged(blocks: Iterable[Block], spec: TeacherSpec, nodes: StrengthNodes) -> LearnedFit:
    """Figures of the fitted teacher on the pairs of the fit."""
    assert spec.learned_offset is not None and spec.learned_slope is not None
    strengths = LogHistogram(1e3, STRENGTH_BINS, low=spec.min_strength)
    pairs, right, likelihood, bounded = 0, 0.0, 0.0, 0
    for table, pairs_P2 in blocks:
        highest_N = table.knots[:, -1]
        strength_N = table.strength(spec.learned_offset, spec.learned_slope)
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
    """log p(y_t) - l_ref(y_t) of the actual next tokens, (N,), nats, for dpo and each named teacher; for the reference
    its log-prob l_ref(y_t) itself."""
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
    """R(chosen) - R(rejected) of each pair, (P,), nats, for each named teacher, composed as for a student, and for the
    models alone.

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
    """The scores of some pairs at a time, chosen before rejected, and the number of positions of each response."""
    selection = replace(Selection.everything(cache.plan, pairs=served), names=False)
    sizes_P2 = cache.index.num_positions[pairs.rows]
    block_P = np.cumsum(sizes_P2.sum(axis=1)) // BLOCK_POSITIONS
    starts = np.flatnonzero(np.diff(block_P, prepend=-1))
    with progress(None, description, total=len(pairs), unit="pair", brief=True) as bar:
        for start, stop in pairwise([*starts.tolist(), len(pairs)]):
            _, scores = cache.read_joined(pairs.rows[start:stop].ravel().tolist(), selection)
            yield scores, sizes_P2[start:stop].ravel()
            bar.update(stop - start)
