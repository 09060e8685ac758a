"""The teacher's options: the presets of the paper and its released code, strengths, weights, refusals."""

import numpy as np
import pytest
import torch

from shards.errors import OptionError
from shards.format.schema import Pair
from shards.teacher.spec import PRESETS, TeacherSpec, strength, teacher_logits, token_weight

DISTANCE_N = np.array([0.0, 0.1, 0.5, 2.0])


@pytest.mark.parametrize(
    ("name", "anchor", "negative", "how"),
    [
        ("linear", "reference", "reference", "constant"),
        ("contrastive", "dpo", "reverse", "constant"),
        ("adaptive", "reference", "reference", "adaptive"),
        ("aligndistil", "dpo", "reverse", "adaptive"),
    ],
)
def test_presets_are_those_of_the_paper(name, anchor, negative, how):
    spec = TeacherSpec.preset(name)
    assert (spec.anchor, spec.negative, spec.strength) == (anchor, negative, how)
    assert (spec.beta, spec.gain, spec.kl_coef) == (0.1, 10.0, 0.05)
    assert spec.pair == Pair(anchor, negative)


def test_the_default_teacher_is_aligndistil():
    assert TeacherSpec() == TeacherSpec.preset("aligndistil")
    assert len(PRESETS) == 4


def test_a_preset_takes_any_field_as_an_override():
    assert TeacherSpec.preset("linear", anchor="dpo", beta=0.2) == TeacherSpec(
        anchor="dpo", negative="reference", strength="constant", beta=0.2
    )


def test_an_adaptive_strength_is_gain_times_distance_plus_a_thousandth_and_its_weight_beta_over_it():
    spec = TeacherSpec.preset("aligndistil", beta=0.2, gain=15.0)
    strength_N = strength(spec, DISTANCE_N)
    np.testing.assert_allclose(strength_N, [0.001, 1.501, 7.501, 30.001], rtol=1e-15)
    np.testing.assert_allclose(token_weight(spec, strength_N), 0.2 / strength_N, rtol=1e-15)


def test_min_strength_is_the_strength_of_equal_models_and_max_weight_caps_every_weight():
    spec = TeacherSpec(beta=0.2, gain=15.0, min_strength=0.02, max_weight=0.3)
    strength_N = strength(spec, DISTANCE_N)
    np.testing.assert_allclose(strength_N, [0.02, 1.52, 7.52, 30.02], rtol=1e-15)
    np.testing.assert_allclose(token_weight(spec, strength_N), [0.3, *(0.2 / strength_N[1:])], rtol=1e-15)
    constant = TeacherSpec.preset("linear", max_weight=0.03)
    np.testing.assert_array_equal(token_weight(constant, strength(constant, DISTANCE_N)), [0.03] * 4)
    learned = TeacherSpec(strength="learned", learned_offset=-50.0, learned_slope=0.0, min_strength=0.02)
    np.testing.assert_allclose(strength(learned, DISTANCE_N, highest=np.full(4, 4.0)), [0.02] * 4)


def test_a_record_says_what_it_said_before_there_was_a_cap_unless_the_run_has_one():
    old = {"anchor", "negative", "strength", "beta", "gain", "kl_coef", "learned_offset", "learned_slope"}
    assert set(TeacherSpec().to_json()) == old
    for spec in (TeacherSpec(), TeacherSpec(min_strength=0.02), TeacherSpec(max_weight=0.3)):
        assert TeacherSpec(**spec.to_json()) == spec
    assert "max_weight" not in str(TeacherSpec()) and "min_strength" not in str(TeacherSpec())
    assert str(TeacherSpec(min_strength=0.02, max_weight=0.3)).endswith("gain 10, min_strength 0.02, max_weight 0.3")


def test_a_constant_strength_is_beta_over_kl_coef_and_its_weight_kl_coef():
    spec = TeacherSpec.preset("contrastive", beta=0.2, kl_coef=0.1)
    strength_N = strength(spec, DISTANCE_N)
    np.testing.assert_array_equal(strength_N, [2.0] * 4)
    np.testing.assert_array_equal(token_weight(spec, strength_N), [0.1] * 4)


def test_aligndistil_reads_one_plus_w_dpo_minus_w_reverse_and_linear_mixes_dpo_and_reference():
    generator = np.random.default_rng(0)
    dpo, reverse, reference, w = generator.normal(size=(4, 30))
    np.testing.assert_allclose(teacher_logits(dpo, dpo - reverse, w), (1 + w) * dpo - w * reverse, atol=1e-14)
    np.testing.assert_allclose(teacher_logits(reference, dpo - reference, w), w * dpo + (1 - w) * reference, atol=1e-14)


@pytest.mark.parametrize("name", PRESETS)
def test_numpy_and_torch_give_the_same_numbers(name):
    spec = TeacherSpec.preset(name)
    expected_N = strength(spec, DISTANCE_N)
    found_N = strength(spec, torch.from_numpy(DISTANCE_N))
    np.testing.assert_array_equal(found_N.numpy(), expected_N)
    np.testing.assert_array_equal(token_weight(spec, found_N).numpy(), token_weight(spec, expected_N))


@pytest.mark.parametrize(
    "wrong",
    [
        {"anchor": "reverse"},
        {"negative": "dpo"},
        {"strength": "learned-by-heart"},
        {"beta": 0.0},
        {"beta": -1.0},
        {"beta": float("nan")},
        {"gain": -0.1},
        {"gain": float("inf")},
        {"kl_coef": 0.0},
        {"min_strength": 0.0},
        {"min_strength": 9e-7},
        {"min_strength": float("inf")},
        {"max_weight": 0.0},
        {"max_weight": float("nan")},
        {"max_weight": float("inf")},
    ],
)
def test_an_option_out_of_range_is_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(OptionError, match=f"^{name}: expected .*, got "):
        TeacherSpec(**wrong)


def test_a_gain_of_zero_is_legal():
    assert np.all(strength(TeacherSpec(gain=0.0), DISTANCE_N) == 1e-3)


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(OptionError, match="aligndistil, adaptive, contrastive, linear, got 'best'"):
        TeacherSpec.preset("best")
