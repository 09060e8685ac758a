"""The student's kernel against the divergence and its gradient in float64, on hostile values; and a step through it."""

import pytest
import torch
from kernel_devices import DEVICES, INTERPRETED, speed_up_interpreter
from test_student_loss import DIVERGENCES, V, batch_of
from tiny import nudged

from shards import Divergence
from shards.teacher.divergence import Buckets
from student.loss.forward import DistillForward
from student.loss.sparse import SparseTargets

kernels = pytest.importorskip("student.loss.kernels", reason="needs triton")

TILE = {"R": 2, "L": 16, "num_warps": 1} if INTERPRETED else kernels.TILE


@pytest.fixture(autouse=True)
def faster(monkeypatch):
    speed_up_interpreter(monkeypatch)


def sample(count, size, *, seed=0, scale=2.0):
    """(logits (C, V), buckets): a student near the teacher, with the given numbers of kept tokens."""
    torch.manual_seed(seed)
    teacher_CV = (torch.randn(len(count), size) * scale).double().log_softmax(-1)
    logits_CV = teacher_CV.float() + 0.3 * torch.randn(len(count), size)
    ids = [torch.randperm(size)[:k].sort().values for k in count]
    kept = [teacher_V[ids_K] for teacher_V, ids_K in zip(teacher_CV, ids, strict=True)]
    outside_CV = teacher_CV.clone()
    for outside_V, ids_K in zip(outside_CV, ids, strict=True):
        outside_V[ids_K] = -torch.inf
    tail_C = outside_CV.logsumexp(-1)
    return logits_CV, Buckets(torch.tensor(count), torch.cat(ids), torch.cat(kept).float(), tail_C.float())


def extreme():
    logits_CV, buckets = sample([5, 1, 3, 4], 40)
    logits_CV[0] *= 3e3
    logits_CV[1] -= 1e30
    logits_CV[2] += 3e4
    logits_CV[3, 7] = 100.0
    return logits_CV, buckets


def masked():
    """Tokens that the student cannot say: a kept one, one of the tail, the whole tail, all that is kept."""
    logits_CV, buckets = sample([4, 4, 4, 4], 40)
    ids = buckets.ids.view(4, 4)
    logits_CV[0, ids[0, 1]] = -torch.inf
    logits_CV[1, next(v for v in range(40) if v not in ids[1])] = -torch.inf
    only_CV = torch.full((40,), -torch.inf)
    only_CV[ids[2]] = logits_CV[2, ids[2]]
    logits_CV[2] = only_CV
    logits_CV[3, ids[3]] = -torch.inf
    return logits_CV, buckets


def lacking():
    """Kept tokens and a tail that the teacher lacks, and the student too."""
    logits_CV, buckets = sample([3, 40], 40)
    buckets.logprobs[:2] = -torch.inf
    logits_CV[0, buckets.ids[:2]] = -torch.inf
    logits_CV[0, buckets.ids[0]] = -torch.inf
    assert buckets.tail[1].isneginf()
    return logits_CV, buckets


HOSTILE = {
    "ragged": sample([3, 17, 1, 33], 75),
    "one position": sample([2], 33),
    "a tile to the last token": sample([2, 5], 64),
    "less than a tile": sample([2, 4], 5),
    "K = V": sample([40, 40], 40),
    "K = 1": sample([1, 1], 40),
    "equal logits": (torch.zeros(2, 50), sample([3, 50], 50)[1]),
    "extreme": extreme(),
    "masked": masked(),
    "masked, far below 0": (masked()[0] - 1000, masked()[1]),
    "K = V, far below 0": (sample([40], 40)[0] - 1000, sample([40], 40)[1]),
    "lacking": lacking(),
}


def exact(divergence, logits_CV, buckets, factor_C):
    """Value, log masses and factor * gradient from the definitions, by autograd in float64 over finite masses."""
    logits_CV = (logits_CV.double() - logits_CV.amax(-1, keepdim=True)).requires_grad_()  # 1e30 would swallow the rest
    values, student, tails = [], [], []
    start = 0
    for c, k in enumerate(buckets.count.tolist()):
        ids_K, teacher_K = buckets.ids[start : start + k], buckets.logprobs[start : start + k].double()
        start += k
        outside_V = torch.ones(logits_CV.shape[1], dtype=torch.bool).index_fill(0, ids_K, False)
        everything = logits_CV[c].logsumexp(-1)
        kept_K = logits_CV[c, ids_K] - everything
        there = outside_V & ~logits_CV[c].isneginf()
        tail = logits_CV[c][there].logsumexp(-1) - everything if there.any() else torch.tensor(-torch.inf).double()
        masses, wanted = torch.cat([kept_K, tail[None]]), torch.cat([teacher_K, buckets.tail[c].double()[None]])
        value_B, _ = divergence.terms(masses, wanted, torch)
        values.append(value_B.sum())
        student.append(kept_K)
        tails.append(tail)
    found = torch.stack(values)
    (grad_CV,) = torch.autograd.grad((found.where(found.isfinite(), 0) * factor_C.double()).sum(), logits_CV)
    return found.detach(), torch.cat(student).detach(), torch.stack(tails).detach(), grad_CV


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("case", HOSTILE)
def test_value_and_gradient_are_those_of_float64(case, name, device):
    logits_CV, buckets = HOSTILE[case]
    divergence = Divergence(name=name, jsd_weight=0.3)
    torch.manual_seed(1)
    factor_C = torch.rand(len(logits_CV)) + 0.5
    gradient_CV = logits_CV.clone().to(device)
    there = Buckets(*(tensor.to(device) for tensor in buckets))
    value_C, student_M, tail_C = (
        found.cpu() for found in kernels.with_gradient_(divergence, gradient_CV, there, factor_C.to(device), tile=TILE)
    )
    wanted_C, wanted_M, wanted_tail_C, wanted_CV = exact(divergence, logits_CV, buckets, factor_C)
    close = {"rtol": 2e-5, "atol": 3e-6}
    torch.testing.assert_close(value_C, wanted_C.float(), **close)
    torch.testing.assert_close(student_M, wanted_M.float(), **close)
    torch.testing.assert_close(tail_C, wanted_tail_C.float(), **close)
    settled_C = wanted_C.isfinite() & ~wanted_CV.isnan().any(1)
    assert settled_C.any()
    torch.testing.assert_close(gradient_CV.cpu()[settled_C], wanted_CV.float()[settled_C], **close)
    assert gradient_CV.isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_gradient_can_go_to_a_tensor_of_another_dtype_with_rows_apart(dtype, device):
    logits_CV, buckets = (HOSTILE["ragged"][0].to(device), Buckets(*(t.to(device) for t in HOSTILE["ragged"][1])))
    wide_CW = torch.full((4, 75 + 5), 7.0, dtype=dtype, device=device)
    apart_CW = torch.full((4, 75 + 3), 5.0, device=device)
    apart_CW[:, :75] = logits_CV
    in_place_CV = logits_CV.clone()
    one = kernels.with_gradient_(Divergence(), in_place_CV, buckets, tile=TILE)
    other = kernels.with_gradient_(Divergence(), apart_CW[:, :75], buckets, gradient_CV=wide_CW[:, :75], tile=TILE)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    # the interpreter cuts off what bfloat16 does not hold, a device rounds it
    close = {"rtol": 2**-7, "atol": 0.0} if dtype == torch.bfloat16 else {"rtol": 0.0, "atol": 0.0}
    torch.testing.assert_close(wide_CW[:, :75], in_place_CV.to(dtype), **close)
    assert (wide_CW[:, 75:] == 7).all() and (apart_CW[:, 75:] == 5).all()


@pytest.mark.skipif(not INTERPRETED, reason="the CPU needs TRITON_INTERPRET=1")
def test_logits_that_the_kernel_does_not_take_are_refused():
    logits_CV, buckets = HOSTILE["one position"]
    for wrong in (logits_CV.double(), logits_CV.repeat(2, 1).t()):
        with pytest.raises(TypeError, match="expected float32 logits with contiguous rows"):
            kernels.with_gradient_(Divergence(), wrong, buckets)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_step_through_the_kernel_has_the_loss_metrics_and_gradient_of_one_through_torch(
    sparse_cache, trio, name, device
):
    found = {}
    for choice in ("torch", "triton"):
        model = nudged(trio["reference"], 7, 0.3).to(device)
        batch = {
            key: tensor.to(device) if torch.is_tensor(tensor) else tensor
            for key, tensor in batch_of(sparse_cache, [0]).items()
        }
        forward = DistillForward(
            model, vocabulary_size=V, divergence=Divergence(name=name), chunk_positions=4, kernels=choice
        )
        hidden_NH = model.model(batch["input_ids"], batch["attention_mask"])[0].flatten(0, 1)[batch["position"]]
        out = forward.distill(hidden_NH, SparseTargets(batch))
        out["loss_sum"].backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        found[choice] = (out["loss_sum"].detach(), out["metrics"], gradient)
    for one, other in zip(found["torch"], found["triton"], strict=True):
        assert (one - other).norm() <= 3e-5 * one.norm() + 1e-7
