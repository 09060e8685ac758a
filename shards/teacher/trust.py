"""Measures how good a cache is for a given teacher, and holds all thresholds for it. Pure.

docs/teacher.md, "When sparse targets can be trusted", says what the thresholds mean and how they were chosen.
`shards.teacher.verdict` draws the conclusions.

Dimensions: N response positions, M kept tokens over all positions, J strength nodes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from shards.format.nodes import StrengthNodes, adaptive_strength
from shards.format.scores import Scores, segment_logsumexp, segment_starts
from shards.format.statistics import Histogram, LogHistogram
from shards.teacher.compose import LOW_STRENGTH, Teacher, compose
from shards.teacher.divergence import Divergence
from shards.teacher.precision import Precision
from shards.teacher.spec import TeacherSpec

GOOD_COVERAGE, LOW_COVERAGE = 0.95, 0.85
"""Mean mass on the kept tokens: the bucketed loss is below the dense one by about the missing share. On the models of
docs/teacher.md 0.95 left the gradient about 1.5 degrees off, 0.85 about 6."""

LOW_SUPPORT_MASS = 0.8
"""For one position, or a student: with a fifth of the mass in one bucket, targets say little about the direction."""

LOOSE_NATS, VERY_LOOSE_NATS = 0.01, 0.1
"""Bound on the error of log p*: 1% and 10% of a probability. A preference moves a token by about 0.1 nat. A tenth of
that is within the rounding of bf16 models; an error as large as that can hide the preference."""

SOME_LOOSE = 0.02
"""Share of positions over LOOSE_NATS that a mean can hide; the default nodes left about 1% under the worst teacher of
docs/teacher.md."""

STRONG = 10.0
"""w_t that extrapolates the difference of two models by a factor of ten, where their errors dominate."""

SOME_STRONG, MANY_STRONG = 0.05, 0.5
"""Share of positions over STRONG: one in twenty is visible in a mean; at one in two it dominates the teacher."""

WEAK = LOW_STRENGTH
"""w_t at which the two models agree; lambda_t = beta / w_t is 10 to 100 times beta there, unless it is capped."""

MUCH_WEAK_LOSS = 0.1
"""Share of the loss at positions under WEAK, for the reference as student: above it, agreement outweighs preference."""

EQUAL_DISTANCE, MANY_EQUAL = 1e-4, 0.99
"""D_t of models that are equal up to rounding, which leaves 1e-6 in float32; training leaves 1e-2. If nearly all
positions are below it, the teacher has no direction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """The trust in one teacher of one cache, measured over response positions; every share is in [0, 1].

    histograms   support_count      K_t
                 coverage_teacher, coverage_reference   their mass on the kept tokens
                 tail_mass          the teacher's mass outside them
                 tail_bound         error bound of the tail's log partition, nats
                 logprob_bound      the resulting error bound of log p* of every kept token, nats (`logprob_bound`)
                 l1_distance, strength   D_t, w_t
    thin_share, loose_share   of positions where the teacher or the reference covers less than LOW_SUPPORT_MASS;
                 where logprob_bound exceeds LOOSE_NATS
    strong_share, weak_share, equal_share   of positions with w_t over STRONG, under WEAK; with D_t under EQUAL_DISTANCE
    weak_loss_share   of the loss, sum of lambda_t KL(reference || teacher) over the buckets, at positions under WEAK:
                 the first value of low_strength_loss_share in the training log
    stuck_loss_share   of the loss, at those of them that stay under WEAK even with the last gain node
    precision        what the bodies' dtype cost, measured by the build; None for float32
    interval_bound   (J - 1,)   sum of logprob_bound over the positions with a strength between nodes j and j + 1
    """

    spec: TeacherSpec
    nodes: StrengthNodes
    histograms: Mapping[str, Histogram]
    thin_share: float
    loose_share: float
    strong_share: float
    weak_share: float
    equal_share: float
    weak_loss_share: float
    stuck_loss_share: float
    interval_bound: np.ndarray
    precision: Precision | None = None

    @property
    def positions(self) -> int:
        return self.histograms["strength"].count

    def mean(self, name: str) -> float:
        return self.histograms[name].mean


def assess(
    parts: Iterable[Scores],
    spec: TeacherSpec,
    nodes: StrengthNodes,
    vocabulary_size: int,
    precision: Precision | None = None,
) -> Trust:
    """Measure the teacher of `spec` on scores, in memory that does not grow with them.

    parts: at least one position in all, with the roles and the pair of `spec`, and with the reference.
    precision: what the build measured.
    """
    histograms = _histograms(vocabulary_size)
    counts, loss, interval_bound = np.zeros(5), np.zeros(3), np.zeros(len(nodes) - 1)
    for scores in parts:
        teacher = compose(scores, spec, nodes)
        values = _values(scores, teacher, spec)
        for name, histogram in histograms.items():
            histogram.add(values[name])
        distance_N = scores.l1_distance[spec.negative]
        weak_N, equal_N = teacher.strength < WEAK, distance_N < EQUAL_DISTANCE
        thin_N = np.minimum(values["coverage_teacher"], values["coverage_reference"]) < LOW_SUPPORT_MASS
        loose_N = values["logprob_bound"] > LOOSE_NATS
        counts += [flag_N.sum() for flag_N in (thin_N, loose_N, teacher.strength > STRONG, weak_N, equal_N)]
        loss_N = teacher.weight * _reference_kl(scores, teacher)
        stuck_N = weak_N & (adaptive_strength(distance_N, nodes.gains[-1], spec.min_strength) < WEAK)
        loss += loss_N[weak_N].sum(), loss_N[stuck_N].sum(), loss_N.sum()
        interval_N = nodes.interval(distance_N, teacher.strength)
        interval_bound += np.bincount(interval_N, values["logprob_bound"], minlength=len(nodes) - 1)
    thin, loose, strong, weak, equal = (float(share) for share in counts / histograms["strength"].count)
    weak_loss, stuck_loss = (float(part / loss[-1]) if loss[-1] > 0 else 0.0 for part in loss[:-1])
    return Trust(
        spec=spec,
        nodes=nodes,
        histograms=histograms,
        thin_share=thin,
        loose_share=loose,
        strong_share=strong,
        weak_share=weak,
        equal_share=equal,
        weak_loss_share=weak_loss,
        stuck_loss_share=stuck_loss,
        interval_bound=interval_bound,
        precision=precision,
    )


def logprob_bound(teacher: Teacher) -> np.ndarray:
    """Error bound of the teacher's normaliser, and so of log p* of every kept token, (N,), nats; 0 at a node.

    With q the teacher's tail mass and b its tail_bound, the true log partition of the tail is within b of the
    interpolated one. So log Z moves up by at most log(1 - q + q exp(b)), and down by less, because that is convex in b.
    """
    kept_N = segment_logsumexp(teacher.logprobs, teacher.support_count)  # log(1 - q), without its cancellation
    return np.where(teacher.tail_bound > 0, np.logaddexp(kept_N, teacher.tail_logprob + teacher.tail_bound), 0.0)


def _values(scores: Scores, teacher: Teacher, spec: TeacherSpec) -> dict[str, np.ndarray]:
    """The values of every histogram, (N,)."""
    tail_mass_N = np.minimum(np.exp(teacher.tail_logprob), 1.0)
    reference_N = -np.expm1(scores.tail_logprob["reference"].astype(np.float64))
    return {
        "support_count": teacher.support_count,
        "coverage_teacher": 1.0 - tail_mass_N,
        "coverage_reference": np.clip(reference_N, 0.0, 1.0),
        "tail_mass": tail_mass_N,
        "tail_bound": teacher.tail_bound,
        "logprob_bound": logprob_bound(teacher),
        "l1_distance": scores.l1_distance[spec.negative],
        "strength": teacher.strength,
    }


def _histograms(vocabulary_size: int) -> dict[str, Histogram]:
    nats = {name: LogHistogram(1e3, 4_000, low=1e-9) for name in ("tail_bound", "logprob_bound")}
    return {
        "support_count": Histogram(vocabulary_size + 1, vocabulary_size + 1),
        "coverage_teacher": Histogram(1.0, 10_000),
        "coverage_reference": Histogram(1.0, 10_000),
        "tail_mass": LogHistogram(1.0, 4_000, low=1e-9),
        **nats,
        "l1_distance": Histogram(2.0, 20_000),
        "strength": LogHistogram(1e3, 4_000, low=1e-4),
    }


def _reference_kl(scores: Scores, teacher: Teacher) -> np.ndarray:
    """KL(reference || teacher) over the buckets, (N,), nats: the reverse KL of a student that is the reference."""
    divergence = Divergence(name="reverse_kl")
    kept_M, _ = divergence.terms(scores.logprobs["reference"].astype(np.float64), teacher.logprobs, np)
    tail_N, _ = divergence.terms(scores.tail_logprob["reference"].astype(np.float64), teacher.tail_logprob, np)
    return np.add.reduceat(kept_M, segment_starts(scores.support_count)) + tail_N
