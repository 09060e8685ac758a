"""Means with standard errors, and intervals of shares. Pure; numpy, float64.

Dimensions: R responses, G groups of them (the two responses of a pair; the samples of a prompt).
"""

import math
from dataclasses import dataclass

import numpy as np

Z_95 = 1.959964
"""Half the width of a normal distribution's middle 95%, in standard deviations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean and its standard error, which is None for fewer than two groups."""

    mean: float
    standard_error: float | None


def ratio(values_R: np.ndarray, counts_R: np.ndarray, group_R: np.ndarray) -> Estimate:
    """sum(values) / sum(counts): a mean per token if counts are tokens, per response if they are 1.

    The standard error is that of a ratio, linearised, with groups of responses as units, because responses of a group
    share a prompt and are not independent. For the difference of two models on the same responses, pass the differences
    as values: the error is then the paired one.
    """
    total = float(counts_R.sum())
    mean = float(values_R.sum()) / total
    groups, index_R = np.unique(group_R, return_inverse=True)
    size = len(groups)
    if size < 2:
        return Estimate(mean=mean, standard_error=None)
    residual_G = np.bincount(index_R, values_R - mean * counts_R)
    return Estimate(mean=mean, standard_error=math.sqrt(size / (size - 1) * float(residual_G @ residual_G)) / total)


def share_interval(share: float, trials: int) -> tuple[float, float]:
    """The 95% interval of a share of some independent trials: Wilson 1927. It always stays within 0 and 1.

    Trials that count in part (ties, the mean of several samples of a prompt) vary less than yes and no, so for them it
    is wider than necessary.
    """
    spread = Z_95**2 / trials
    centre = (share + spread / 2) / (1 + spread)
    half = Z_95 / (1 + spread) * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return max(0.0, centre - half), min(1.0, centre + half)
