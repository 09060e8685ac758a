"""Divergences over buckets: values, gradients over the student's logits, and their relation to the dense ones."""

import numpy as np
import pytest
import torch

from shards.errors import OptionError
from shards.teacher.divergence import Divergence

N, V = 40, 12
DIVERGENCES = [Divergence(), Divergence(name="forward_kl"), *(Divergence(name="jsd", jsd_weight=c) for c in (0.1, 0.5))]


def logprobs(seed, scale=2.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, scale, (N, V))).log_softmax(-1)


@pytest.fixture(scope="module", name="kept_NV")
def kept():
    """The support of each position: from one token to all, so that some tails are empty."""
    count_N1 = torch.from_numpy(np.random.default_rng(4).integers(1, V + 1, (N, 1)))
    count_N1[:3] = V
    order_NV = torch.from_numpy(np.random.default_rng(5).random((N, V))).argsort(-1)
    return order_NV < count_N1


def buckets(logprobs_NV, kept_NV):
    """(N, V + 1): a bucket for each kept token, the tail last; -inf if there is no such bucket."""
    tail_N1 = logprobs_NV.masked_fill(kept_NV, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logprobs_NV.masked_fill(~kept_NV, -torch.inf), tail_N1], dim=1)


def reference_value(divergence, student, teacher):
    """The formulas of the method over the elements that have mass, one position after the other; differentiable."""
    total = torch.zeros((), dtype=torch.float64)
    for s, t in zip(student, teacher, strict=True):
        s, t = s[torch.isfinite(s)], t[torch.isfinite(s)]
        match divergence.name:
            case "reverse_kl":
                total = total + (s.exp() * (s - t)).sum()
            case "forward_kl":
                total = total + (t.exp() * (t - s)).sum()
            case _:
                c = divergence.jsd_weight
                mixture = (c * t.exp() + (1 - c) * s.exp()).log()
                total = total + c * (t.exp() * (t - mixture)).sum() + (1 - c) * (s.exp() * (s - mixture)).sum()
    return total


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_value_and_gradient_agree_with_autograd(divergence, kept_NV):
    logits_NV = logprobs(0).clone().requires_grad_()
    student_NV = logits_NV.log_softmax(-1)
    teacher_NB = buckets(logprobs(1), kept_NV)
    expected = reference_value(divergence, buckets(student_NV, kept_NV), teacher_NB)
    expected.backward()

    student_NV = student_NV.detach()
    student_NB = buckets(student_NV, kept_NV)
    value_NB, slope_NB = divergence.terms(student_NB, teacher_NB, torch)
    torch.testing.assert_close(value_NB.sum(), expected.detach(), rtol=1e-12, atol=1e-12)
    # p(v) g(b(v)): a kept token is its bucket; the tail's slope is shared out by the tokens' share of its mass
    share_NV = (student_NV - student_NB[:, -1:]).exp() * slope_NB[:, -1:]
    own_NV = torch.where(kept_NV, slope_NB[:, :-1], share_NV)
    gradient_NV = own_NV - student_NV.exp() * slope_NB.sum(-1, keepdim=True)
    torch.testing.assert_close(gradient_NV, logits_NV.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_the_bucketed_divergence_never_exceeds_the_dense_one(divergence, kept_NV):
    student_NV, teacher_NV = logprobs(2), logprobs(3)
    bucketed_NB, _ = divergence.terms(buckets(student_NV, kept_NV), buckets(teacher_NV, kept_NV), torch)
    dense_NV, _ = divergence.terms(student_NV, teacher_NV, torch)
    dense_N, bucketed_N = dense_NV.sum(-1), bucketed_NB.sum(-1)
    assert torch.all(bucketed_N <= dense_N + 1e-12)
    assert torch.all(bucketed_N >= -1e-12)
    full_N = kept_NV.all(-1)
    assert 3 <= full_N.sum() < N
    torch.testing.assert_close(bucketed_N[full_N], dense_N[full_N], rtol=1e-12, atol=1e-12)
    assert torch.any(bucketed_N < dense_N - 0.1)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_the_bucket_is_exact_where_both_tails_have_one_shape(divergence, kept_NV):
    student_NV = logprobs(2)
    scale_N1 = torch.from_numpy(np.random.default_rng(8).normal(size=(N, 1)))
    teacher_NV = torch.where(kept_NV, student_NV + logprobs(3), student_NV + scale_N1).log_softmax(-1)
    bucketed_NB, _ = divergence.terms(buckets(student_NV, kept_NV), buckets(teacher_NV, kept_NV), torch)
    dense_NV, _ = divergence.terms(student_NV, teacher_NV, torch)
    torch.testing.assert_close(bucketed_NB.sum(-1), dense_NV.sum(-1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_a_student_that_is_the_teacher_pays_nothing_and_is_not_moved(divergence, kept_NV):
    student_NB = buckets(logprobs(2), kept_NV)
    value_NB, slope_NB = divergence.terms(student_NB, student_NB, torch)
    assert value_NB.sum(-1).abs().max() < 1e-14
    # a constant g moves nothing: P g is then proportional to P
    constant_N1 = slope_NB.sum(-1, keepdim=True)
    torch.testing.assert_close(slope_NB, constant_N1 * student_NB.exp(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_an_empty_bucket_contributes_nothing(divergence):
    empty = np.array([-np.inf, np.log(0.5)])
    value, slope = divergence.terms(empty, empty, np)
    assert (value[0], slope[0]) == (0.0, 0.0)
    assert np.all(np.isfinite([*value, *slope]))


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_numpy_and_torch_give_the_same_numbers(divergence, kept_NV):
    student_NB, teacher_NB = buckets(logprobs(2), kept_NV), buckets(logprobs(3), kept_NV)
    by_torch = divergence.terms(student_NB, teacher_NB, torch)
    by_numpy = divergence.terms(student_NB.numpy(), teacher_NB.numpy(), np)
    for found, expected in zip(by_torch, by_numpy, strict=True):
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-13, atol=1e-15)


def test_masses_that_only_one_side_has_cost_what_the_formulas_say():
    student, teacher = np.log([1.0, 0.5]), np.log([0.5, 0.5])
    none = np.full(2, -np.inf)
    assert np.all(Divergence(name="reverse_kl").terms(student, none, np)[0] == np.inf)
    assert np.all(Divergence(name="reverse_kl").terms(none, teacher, np)[0] == 0)
    assert np.all(Divergence(name="forward_kl").terms(none, teacher, np)[0] == np.inf)
    assert np.all(Divergence(name="forward_kl").terms(student, none, np)[0] == 0)
    jsd = Divergence(name="jsd", jsd_weight=0.3)
    np.testing.assert_allclose(jsd.terms(none, teacher, np)[0], 0.3 * 0.5 * np.log(1 / 0.3))
    np.testing.assert_allclose(jsd.terms(student, none, np)[0], 0.7 * np.exp(student) * np.log(1 / 0.7))


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_a_mass_that_vanishes_reaches_the_value_of_an_empty_bucket(divergence):
    teacher = np.log([0.4])
    nearly, _ = divergence.terms(np.array([-700.0]), teacher, np)
    empty, _ = divergence.terms(np.array([-np.inf]), teacher, np)
    if divergence.name == "forward_kl":
        assert nearly[0] > 200
        assert np.isposinf(empty[0])
    else:
        np.testing.assert_allclose(nearly, empty, atol=1e-12)


def test_the_jsd_tends_to_the_two_kl_divergences():
    student, teacher = logprobs(2).numpy(), logprobs(3).numpy()

    def total(divergence):
        return divergence.terms(student, teacher, np)[0].sum(-1)

    reverse_N, forward_N = total(Divergence()), total(Divergence(name="forward_kl"))
    np.testing.assert_allclose(total(Divergence(name="jsd", jsd_weight=1 - 1e-7)) / 1e-7, reverse_N, rtol=1e-3)
    np.testing.assert_allclose(total(Divergence(name="jsd", jsd_weight=1e-7)) / 1e-7, forward_N, rtol=1e-3)


def test_half_a_jsd_is_symmetric_and_at_most_log_two():
    half = Divergence(name="jsd")
    student, teacher = logprobs(2, 30.0).numpy(), logprobs(3, 30.0).numpy()
    there_N, back_N = (half.terms(*sides, np)[0].sum(-1) for sides in ((student, teacher), (teacher, student)))
    np.testing.assert_allclose(there_N, back_N, atol=1e-13)
    assert np.all(there_N <= np.log(2) + 1e-13)
    assert there_N.max() > 0.69


@pytest.mark.parametrize(
    "wrong", [{"name": "kl"}, {"jsd_weight": 0.0}, {"jsd_weight": 1.0}, {"jsd_weight": float("nan")}]
)
def test_an_option_out_of_range_is_refused_by_name(wrong):
    with pytest.raises(OptionError, match=r"^(divergence|jsd_weight): expected .*, got "):
        Divergence(**wrong)
