"""The gradient in the forward pass equals the one with the output module called twice, with a matrix product less."""

import pytest
import torch
from test_student_loss import (
    DIVERGENCES,
    V,
    batch_of,
    distil,
    learned_positions,
    logit_scale,
    soft_cap,
    tied,
    wider_than_the_vocabulary,
)
from tiny import nudged
from torch.utils._python_dispatch import TorchDispatchMode

from shards import Divergence
from student.loss.forward import DistillForward
from student.loss.fused import why_not_fused
from student.loss.sparse import SparseTargets, sparse_divergence

H = 16
ROWS = [0, 1, 5, 6]


def plain(trio):
    return nudged(trio["reference"], 7, 0.3)


def with_bias(trio):
    model = plain(trio)
    model.lm_head = torch.nn.Linear(H, V, bias=True)
    return model


def frozen_head(trio):
    model = plain(trio)
    model.lm_head.requires_grad_(False)
    return model


def frozen_body(trio):
    model = plain(trio).requires_grad_(False)
    model.lm_head.requires_grad_(True)
    return model


def bf16(trio):
    return plain(trio).bfloat16()


def bf16_soft_cap(trio):
    return soft_cap(trio).bfloat16()


def float64(trio):
    return plain(trio).double()


MAKERS = [
    *(plain, with_bias, frozen_head, frozen_body, bf16, bf16_soft_cap, float64),
    *(tied, soft_cap, logit_scale, learned_positions, wider_than_the_vocabulary),
]


def gradients(loss, model):
    """Gradients of the trained parameters, by name."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: grad for name, grad in zip(named, grads, strict=True) if grad is not None}


def called_as_a_module(model):
    """A hook that does nothing: with it the output layer is not plain."""
    return model.get_output_embeddings().register_forward_hook(lambda *_: None)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_loss_and_gradients_are_those_of_the_module_called_twice(sparse_cache, whole_cache, trio, make, name):
    model = make(trio)
    for cache in (sparse_cache, whole_cache):
        batch = batch_of(cache, ROWS)
        assert why_not_fused(model.get_output_embeddings()) is None
        found = distil(model, batch, name=name, chunk=5)
        ours = gradients(found, model)
        hook = called_as_a_module(model)
        assert why_not_fused(model.get_output_embeddings()) is not None
        expected = distil(model, batch, name=name, chunk=5)
        theirs = gradients(expected, model)
        hook.remove()
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)
        assert ours.keys() == theirs.keys() and ours
        for parameter, grad in theirs.items():
            # one unit in the last place of bf16 where a sum is rounded, else the order of float32 sums
            tolerance = 1e-2 if grad.dtype == torch.bfloat16 else 1e-5
            assert (ours[parameter] - grad).norm() <= tolerance * grad.norm(), parameter


class Operations(TorchDispatchMode):
    """Counts operations; `of` returns the number with a given name and a matrix with V columns or rows."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in (*args, out) if isinstance(x, torch.Tensor)]
        self.seen.append((func.overloadpacket.__name__, [tuple(x.shape) for x in tensors]))
        self.largest = max([self.largest, *(x.numel() for x in tensors)])
        return out

    def of(self, *names):
        return [shapes for name, shapes in self.seen if name in names and any(V in shape for shape in shapes)]


def run_counted(model, batch, *, chunk, train=True):
    """Operations of loss and backward pass, from the hidden states on."""
    forward = DistillForward(model, vocabulary_size=V, divergence=Divergence(), chunk_positions=chunk)
    with torch.no_grad():
        hidden = model.base_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0]
    hidden = hidden.flatten(0, 1)[batch["position"]].requires_grad_(train)
    with Operations() as operations, torch.set_grad_enabled(train):
        out = forward.distill(hidden, SparseTargets(batch))
        if train:
            out["loss_sum"].backward()
    return operations


@pytest.mark.parametrize(("make", "products"), [(plain, 3), (frozen_head, 2)])
def test_a_chunk_takes_three_matrix_products_and_two_with_a_frozen_output_layer(sparse_cache, trio, make, products):
    batch = batch_of(sparse_cache, ROWS)
    model, chunks = make(trio), -(-len(batch["position"]) // 5)
    assert len(run_counted(model, batch, chunk=5).of("mm", "addmm_")) == products * chunks
    assert len(run_counted(model, batch, chunk=5, train=False).of("mm", "addmm_")) == chunks
    called_as_a_module(model)
    assert len(run_counted(model, batch, chunk=5).of("mm", "addmm")) == (products + 1) * chunks


def test_one_exponential_a_chunk_is_taken_over_the_vocabulary(sparse_cache, trio):
    batch = batch_of(sparse_cache, ROWS)
    chunks = -(-len(batch["position"]) // 5)
    found = run_counted(plain(trio), batch, chunk=5).of("exp", "exp_", "logsumexp", "_softmax", "_log_softmax")
    assert len([shapes for shapes in found if max(map(len, shapes)) == 2]) == chunks


def test_only_response_positions_reach_the_output_layer_and_logits_exist_for_a_chunk_at_a_time(sparse_cache, trio):
    batch = batch_of(sparse_cache, list(range(20)))
    operations = run_counted(plain(trio), batch, chunk=3)
    logits = [shapes[0][0] for shapes in operations.of("mm") if shapes[1] == (H, V)]
    assert sum(logits) == len(batch["position"]) < batch["input_ids"].numel()
    assert max(logits) == 3
    entries = len(batch["support_ids"])
    assert operations.largest <= max(3 * V, V * H, len(batch["position"]) * H, entries)


def test_the_incoming_number_scales_all_gradients_and_they_accumulate(sparse_cache, trio):
    model, batch = plain(trio), batch_of(sparse_cache, ROWS)
    once = gradients(distil(model, batch), model)
    for _ in range(2):
        (1.5 * distil(model, batch)).backward()
    for name, grad in once.items():
        torch.testing.assert_close(dict(model.named_parameters())[name].grad, 3 * grad, rtol=1e-5, atol=1e-7)


def test_a_second_backward_is_refused(sparse_cache, trio):
    model = plain(trio)
    loss = distil(model, batch_of(sparse_cache, ROWS))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_nothing_is_left_for_a_backward_without_gradients(sparse_cache, trio):
    model = plain(trio)
    with torch.no_grad():
        assert not distil(model, batch_of(sparse_cache, ROWS)).requires_grad


class OtherLinear(torch.nn.Linear):
    pass


def test_the_reason_against_fusing_names_the_output_layer():
    assert why_not_fused(torch.nn.Linear(2, 3)) is None
    assert "OtherLinear" in why_not_fused(OtherLinear(2, 3))
    patched = torch.nn.Linear(2, 3)
    patched.forward = patched.forward
    assert "of its own" in why_not_fused(patched)
    typed = torch.nn.Linear(2, 3)
    typed.weight = torch.nn.Parameter(torch.ones(3, 2).as_subclass(type("Sharded", (torch.Tensor,), {})))
    assert "Sharded" in why_not_fused(typed)
    for register in ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"):
        hooked = torch.nn.Linear(2, 3)
        getattr(hooked, f"register_{register}")(lambda *_: None)
        assert "hooks" in why_not_fused(hooked)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_extreme_logits_give_finite_numbers(sparse_cache, name):
    targets = SparseTargets(batch_of(sparse_cache, [0, 1, 2]))
    torch.manual_seed(0)
    logits = torch.randn(len(targets.support_count), V)
    logits[0] *= 1e4
    logits[1] -= 1e30
    logits[2] += 3e4
    logits[3] = -torch.inf  # only what is kept can be said
    start = int(targets.support_count[:3].sum())
    logits[3, targets.support_ids[start : start + int(targets.support_count[3])]] = 0.0
    grad = logits.clone()
    value, student, tail = Divergence(name=name).with_gradient_(grad, targets.buckets, torch)
    finite = torch.ones(len(value), dtype=torch.bool)
    finite[[0, 3]] = name != "forward_kl"  # a mass that the student lacks makes it infinite
    assert value[finite].isfinite().all() and grad.isfinite().all() and not student.isnan().any()
    assert tail[3].isneginf()
    exact, _, _ = sparse_divergence(logits.double(), targets, Divergence(name=name))
    torch.testing.assert_close(value[4:], exact[4:].float(), rtol=1e-4, atol=1e-5)
