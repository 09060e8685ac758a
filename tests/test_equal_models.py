"""Equal models: no gain can help, so the verdict says that they are equal, and does not ask for a larger one."""

from dataclasses import replace

import numpy as np
import pytest
from fake_cache import random_logprobs
from test_trust import ALL, trust_of
from test_trust import scores_of as scores_with

from shards import TeacherSpec
from shards.format.nodes import StrengthNodes
from shards.teacher.spec import PRESETS
from shards.teacher.trust import WEAK
from shards.teacher.verdict import finer_nodes, verdict

V, N = 50, 80
LEARNED = TeacherSpec(strength="learned", learned_offset=-9.0, learned_slope=0.0)


def dense_where(apart_N):
    """Roles that differ from the reference at the given positions only."""
    dense = random_logprobs(np.random.default_rng(2), N, V)
    return {role: np.where(apart_N[:, None], values, dense["reference"]) for role, values in dense.items()}


def scores_of(dense):
    return scores_with(dense, ALL)


@pytest.mark.parametrize("spec", [*PRESETS.values(), LEARNED], ids=[*PRESETS, "learned"])
def test_equal_models_are_not_good_for_any_teacher_and_no_gain_is_advised(spec):
    dense = dense_where(np.ones(N, bool))
    dense[spec.negative] = dense["dpo"]
    word, reasons = verdict(trust_of(scores_of(dense), spec))
    assert word == "not good"
    (reason,) = reasons
    assert reason.startswith(f"dpo and {spec.negative} are the same model, or nearly: D_t is under 0.0001 at 100.0% of")
    assert f"The teacher is its anchor, {spec.anchor}, whatever the gain" in reason
    assert "--gain" not in reason and "--kl_coef" not in reason


def test_models_that_differ_by_rounding_are_equal_too():
    dense = dense_where(np.ones(N, bool))
    noise = 1e-6 * np.random.default_rng(0).standard_normal(dense["dpo"].shape)
    dense["reverse"] = dense["dpo"] + noise
    dense["reverse"] -= np.logaddexp.reduce(dense["reverse"], axis=1)[:, None]
    trust = trust_of(scores_of(dense), TeacherSpec())
    assert 0 < trust.mean("l1_distance") < 1e-5
    assert "are the same model, or nearly" in verdict(trust)[1][0]


def test_a_larger_gain_is_advised_only_where_it_lifts_the_weak_positions():
    dense = dense_where(np.ones(N, bool))
    half = np.arange(N) % 2 == 0
    dense["reverse"] = np.where(half[:, None], dense["reverse"], dense["dpo"])
    trust = trust_of(scores_of(dense), TeacherSpec(gain=2))
    assert trust.equal_share == pytest.approx(0.5)
    assert 0.2 < trust.stuck_loss_share <= trust.weak_loss_share
    (reason,) = [text for text in verdict(trust)[1] if f"a strength under {WEAK:g}" in text]
    carry = f"carry {trust.stuck_loss_share:.0%}, and no --gain up to 30 changes that"
    assert f"those where dpo and reverse agree {carry}; --max_weight" in reason

    weak = trust_of(scores_of(dense_where(np.ones(N, bool))), TeacherSpec(gain=0))
    assert weak.weak_loss_share == 1 and weak.stuck_loss_share < 0.1
    assert verdict(weak)[1][0].endswith("train with a larger --gain")


def test_the_strength_of_a_learned_teacher_is_not_changed_by_kl_coef():
    dense = dense_where(np.ones(N, bool))
    weak = verdict(trust_of(scores_of(dense), LEARNED))[1]
    assert any(text.endswith("train with a larger --learned_offset") for text in weak)
    strong = TeacherSpec(strength="learned", learned_offset=60.0, learned_slope=0.0)
    reasons = verdict(trust_of(scores_of(dense), strong))[1]
    assert any(text.endswith("train with a lower --learned_offset") for text in reasons)


def test_a_node_for_a_learned_strength_is_half_way():
    trust = trust_of(scores_of(dense_where(np.ones(N, bool))), replace(LEARNED, kl_coef=0.06))
    trust = replace(trust, interval_bound=np.array([0, 0, 0, 1.0, 0, 0]))
    assert finer_nodes(trust) == StrengthNodes(
        gains=(0, 2, 5, 10, 12.5, 15, 20, 30), strengths=(0, 0.25, 0.5, 1, 1.5, 2, 3, 4)
    )
