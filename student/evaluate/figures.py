"""Turns sums of every response into the figures of an evaluation. Pure; gives plain JSON values.

Dimensions: R responses of the cache, P pairs of them.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from shards.cache import RowIndex
from shards.preferences.pairs import PreferencePairs
from student.evaluate.estimates import Estimate, ratio, share_interval
from student.evaluate.measure import ResponseSums

TIE_NATS = 1e-3
"""Log-ratios of a pair's responses that differ by less than this count as equal: it is the rounding of float32 over a
few hundred tokens. All pairs of the reference itself are such ties."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Responses:
    """The cached responses: their lengths and pairs; `pairs` is None if the cache has no complete pair."""

    index: RowIndex
    pairs: PreferencePairs | None
    beta: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One quantity of some responses or pairs, as input of `student.evaluate.estimates.ratio`."""

    values: np.ndarray
    counts: np.ndarray
    groups: np.ndarray

    def estimate(self) -> Estimate:
        return ratio(self.values, self.counts, self.groups)

    def minus(self, other: "Series") -> Estimate:
        """The mean difference of two models on the same responses, with the paired standard error."""
        return ratio(self.values - other.values, self.counts, self.groups)


def evaluation(
    responses: Responses, sums: ResponseSums, against: ResponseSums | None, own_reduction: str | None = None
) -> dict[str, Any]:
    """{"quantities": name -> {"model", "against", "difference"}, "cached": name -> estimate, "accuracy": ...}.

    Estimates are {"mean", "standard_error"}. `accuracy` is None without pairs; in it, entries named after a model come
    from `outcome_counts`, and `difference` is an estimate. Without `against` the other two are left out.
    own_reduction: how the model's own run averaged over positions, if its own teacher was measured.
    """
    first = of_model(responses, sums)
    other = {} if against is None else of_model(responses, against)
    return {
        "quantities": {
            **{name: compared(series, other.get(name)) for name, series in first.items()},
            **_own(responses, sums, own_reduction),
        },
        "cached": {name: asdict(series.estimate()) for name, series in of_cache(responses, sums).items()},
        "accuracy": None if responses.pairs is None else accuracies(responses.pairs, sums, against),
    }


def _own(responses: Responses, sums: ResponseSums, reduction: str | None) -> dict[str, Any]:
    """The divergence to the model's own teacher, without a comparison to other models."""
    if sums.own_divergence is None:
        return {}
    by_reduction = divergences(responses.index, sums.own_divergence)
    return {"divergence_own": compared(by_reduction["token" if reduction == "token" else "sequence"], None)}


def divergences(index: RowIndex, divergence_R: np.ndarray) -> dict[str, Series]:
    """The mean over all tokens, and over the means of the responses: the two reductions of the student's loss."""
    tokens_R = index.num_positions.astype(np.float64)
    ones_R = np.ones(len(tokens_R))
    return {
        "token": Series(values=divergence_R, counts=tokens_R, groups=index.pair_id),
        "sequence": Series(values=divergence_R / tokens_R, counts=ones_R, groups=index.pair_id),
    }


def compared(series: Series, other: Series | None) -> dict[str, dict[str, float | None]]:
    found = {"model": asdict(series.estimate())}
    if other is None:
        return found
    return found | {"against": asdict(other.estimate()), "difference": asdict(series.minus(other))}


def of_model(responses: Responses, sums: ResponseSums) -> dict[str, Series]:
    """The quantities that depend on the model, nats; named as in the training log if they are in it."""
    index = responses.index
    tokens_R, ones_R = index.num_positions.astype(np.float64), np.ones(len(index.pair_id))
    reward_R = responses.beta * sums.log_ratio

    def series(values_R: np.ndarray, counts_R: np.ndarray) -> Series:
        return Series(values=values_R, counts=counts_R, groups=index.pair_id)

    to_teacher = divergences(index, sums.divergence)
    found = {
        "kl_reference": series(sums.kl_reference, tokens_R),
        "kl_reference_per_sequence": series(sums.kl_reference, ones_R),
        "divergence_teacher": to_teacher["token"],
        "divergence_teacher_by_sequence": to_teacher["sequence"],
        "expected_reward": series(sums.expected_reward, tokens_R),
        "support_mass": series(sums.support_mass, tokens_R),
        **by_kind("implicit_reward", reward_R, index),
    }
    if responses.pairs is not None:
        found["implicit_reward_margin"] = per_pair(responses.beta * margins(responses.pairs, sums.log_ratio), responses)
    return found


def of_cache(responses: Responses, sums: ResponseSums) -> dict[str, Series]:
    """The quantities of the cached models on the responses, and lengths; they do not depend on the model."""
    found = by_kind("contrastive_reward", responses.beta * sums.contrastive, responses.index)
    if responses.pairs is not None:
        margins_P = responses.beta * margins(responses.pairs, sums.contrastive)
        found["contrastive_reward_margin"] = per_pair(margins_P, responses)
    return found | by_kind("tokens", responses.index.num_positions.astype(np.float64), responses.index)


def by_kind(name: str, values_R: np.ndarray, index: RowIndex) -> dict[str, Series]:
    """The mean over the chosen and over the rejected responses, if there are any."""
    kinds = {f"{name}_chosen": index.chosen, f"{name}_rejected": ~index.chosen}
    return {
        kind: Series(values=values_R[mask_R], counts=np.ones(mask_R.sum()), groups=index.pair_id[mask_R])
        for kind, mask_R in kinds.items()
        if mask_R.any()
    }


def per_pair(values_P: np.ndarray, responses: Responses) -> Series:
    assert responses.pairs is not None
    return Series(values=values_P, counts=np.ones(len(values_P)), groups=responses.pairs.pair_id)


def margins(pairs: PreferencePairs, values_R: np.ndarray) -> np.ndarray:
    """Value of the chosen minus value of the rejected response, (P,)."""
    return values_R[pairs.rows[:, 0]] - values_R[pairs.rows[:, 1]]


def accuracies(pairs: PreferencePairs, sums: ResponseSums, against: ResponseSums | None) -> dict[str, Any]:
    """How often the chosen response has the larger log-ratio: under the models, the teacher, dpo and the contrast."""
    ratios = {"model": sums.log_ratio}
    ratios |= {} if against is None else {"against": against.log_ratio}
    ratios |= {"teacher": sums.teacher_log_ratio, "dpo": sums.dpo_log_ratio, "contrastive": sums.contrastive}
    scores = {name: outcomes(margins(pairs, ratio_R)) for name, ratio_R in ratios.items()}
    found: dict[str, Any] = {name: outcome_counts(score_P) for name, score_P in scores.items()}
    if against is not None:
        ones_P = np.ones(len(pairs))
        found["difference"] = asdict(ratio(scores["model"] - scores["against"], ones_P, pairs.pair_id))
    return found


def outcomes(margins_P: np.ndarray, tie: float = TIE_NATS) -> np.ndarray:
    """1 for a win, a half for a tie, 0 for a loss."""
    return np.where(np.abs(margins_P) <= tie, 0.5, (np.sign(margins_P) + 1) / 2)


def outcome_counts(score_P: np.ndarray, trials: int | None = None) -> dict[str, float | int]:
    """Wins, ties and losses; the share of wins, with a tie as half; and its 95% interval.

    trials: how many of the outcomes are independent; default: all.
    """
    share = float(score_P.mean())
    low, high = share_interval(share, len(score_P) if trials is None else trials)
    counts = {name: int((score_P == score).sum()) for name, score in (("wins", 1.0), ("ties", 0.5), ("losses", 0.0))}
    return {**counts, "total": len(score_P), "share": share, "low": low, "high": high}
