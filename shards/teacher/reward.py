"""The contrastive reward of tokens: which models it compares, and how it is written. Pure."""

import numpy as np

from shards.format.plan import Plan
from shards.format.schema import Role
from shards.format.scores import Response
from shards.teacher.spec import TeacherSpec, contrastive_reward

SCALE_QUANTILE = 0.98
"""The deepest colour begins at the size of reward that so many of the tokens shown stay under."""


def rewarded_by(plan: Plan, spec: TeacherSpec | None) -> tuple[Role, float]:
    """(negative, beta) of a teacher; without one, of the default teacher as far as the cache has its models."""
    return (plan.unit_negative, TeacherSpec().beta) if spec is None else (spec.negative, spec.beta)


def formula(negative: Role, beta: float) -> str:
    """How the reward is computed, in words."""
    return f"beta (l_dpo - l_{negative}), beta {beta:g}"


def response_reward(response: Response, negative: Role, beta: float) -> np.ndarray:
    """The reward of each distilled token of a response, (N,) float64."""
    dpo_N, negative_N = (response.scores.next_logprob[role].astype(np.float64) for role in ("dpo", negative))
    return contrastive_reward(dpo_N, negative_N, beta)


def deepest_reward(reward_N: np.ndarray) -> float:
    """The size of a reward from which on its token has the deepest colour, for tokens with these rewards."""
    return float(np.quantile(np.abs(reward_N), SCALE_QUANTILE))
