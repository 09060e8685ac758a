"""The output layer's products in half precision: what is rounded, what is not, and by how much gradients turn."""

from types import SimpleNamespace

import pytest
import torch
from test_fused import gradients, plain, with_bias
from test_student_loss import V, batch_of, distil, soft_cap, tied

from shards import Divergence
from shards.modelfiles.head import LogitTransform
from student.loss import products
from student.loss.fused import FusedLoss
from student.loss.products import HalfProducts, half_of
from student.loss.sparse import SparseTargets

ROWS = [0, 1, 5, 6]
H = 16
BITS = {torch.float16: 11, torch.bfloat16: 8}


def run(half, hidden_NH, head, targets, chunk=5):
    """Loss, and gradients over the hidden states and the weight."""
    loss = FusedLoss(vocabulary_size=V, divergence=Divergence(), transform=LogitTransform(), chunk_positions=chunk)
    hidden_NH = hidden_NH.clone().requires_grad_()
    sums = loss(hidden_NH, head, targets, half)
    return sums[0].detach(), *torch.autograd.grad(sums[0], [hidden_NH, head.weight])


def make(batch, seed=0):
    torch.manual_seed(seed)
    hidden_NH = torch.randn(len(batch["position"]), H)
    return hidden_NH, torch.nn.Linear(H, V + 3, bias=False)


def angle(one, other):
    """Degrees between two gradients."""
    one, other = one.double().flatten(), other.double().flatten()
    return torch.rad2deg(2 * torch.asin((one / one.norm() - other / other.norm()).norm() / 2)).item()


@pytest.mark.parametrize("half", BITS)
def test_logits_are_exact_products_of_the_rounded_inputs(half):
    torch.manual_seed(0)
    hidden_NH, weight_VH = torch.randn(7, H), torch.randn(V, H)
    found_NV = HalfProducts(hidden_NH, weight_VH, torch.ones(7), half).logits(slice(0, 7), out=torch.empty(7, V))
    assert found_NV.dtype == torch.float32
    exact_NV = hidden_NH.to(half).double() @ weight_VH.to(half).double().t()
    torch.testing.assert_close(found_NV.double(), exact_NV, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("half", "degrees"), [(torch.float16, 0.1), (torch.bfloat16, 0.8)])
@pytest.mark.parametrize("maker", [plain, with_bias, tied, soft_cap])
def test_gradients_with_half_products_are_near_those_with_float32_ones(sparse_cache, trio, maker, half, degrees):
    model, batch = maker(trio), batch_of(sparse_cache, ROWS)
    exact = gradients(distil(model, batch, chunk=5), model)
    found = gradients(distil(model, batch, chunk=5, half_of=lambda *_: half), model)
    for name, grad in found.items():
        assert 0 < angle(grad, exact[name]) < degrees, name


def test_gradients_far_below_float16s_range_keep_their_direction(sparse_cache):
    """A power of two on all coefficients is a power of two on the gradients, to the last bit."""
    batch = batch_of(sparse_cache, ROWS)
    hidden_NH, head = make(batch)
    plain_ = run(torch.float16, hidden_NH, head, SparseTargets(batch))
    small = SparseTargets(batch | {"coefficient": batch["coefficient"] * 2.0**-60})
    for one, other in zip(plain_, run(torch.float16, hidden_NH, head, small), strict=True):
        assert torch.equal(one * 2.0**-60, other)


@pytest.mark.parametrize("strong", [0, -1], ids=["first", "last"])
def test_a_weak_position_beside_a_strong_one_keeps_its_gradients(sparse_cache, strong):
    batch = batch_of(sparse_cache, ROWS)
    hidden_NH, head = make(batch)

    def found(half, **coefficients):
        weak, strong_one = coefficients["weak"], coefficients["strong"]
        coefficient = torch.full_like(batch["coefficient"], weak)
        coefficient[strong] = strong_one
        targets = SparseTargets(batch | {"coefficient": coefficient})
        return (
            run(half, hidden_NH, head, targets) if half else run(None, hidden_NH.half().float(), rounded(head), targets)
        )

    _, grad_NH, _ = found(torch.float16, weak=1e-8, strong=100.0)
    _, exact_NH, _ = found(None, weak=1e-8, strong=100.0)
    for row, exact in zip(grad_NH, exact_NH, strict=True):
        assert angle(row, exact) < 0.1
    grad_WH, strong_WH = (found(torch.float16, weak=weak, strong=100.0)[-1] for weak in (1e-3, 0.0))
    # the weak positions' part of the sum is a hundred-thousandth of it, and still there
    assert angle(grad_WH - strong_WH, found(None, weak=1e-3, strong=0.0)[-1]) < 5
    assert angle(grad_WH, found(None, weak=1e-3, strong=100.0)[-1]) < 0.05


def rounded(head):
    other = torch.nn.Linear(H, V + 3, bias=False)
    other.weight = torch.nn.Parameter(head.weight.detach().half().float())
    return other


def test_hidden_states_and_weights_at_the_ends_of_float16s_range_give_finite_gradients(sparse_cache):
    batch = batch_of(sparse_cache, ROWS)
    hidden_NH, head = make(batch)
    for scale in (1e-3, 1e3):
        with torch.no_grad():
            head.weight.div_(scale)
        _, grad_NH, grad_WH = run(torch.float16, hidden_NH * scale, head, SparseTargets(batch))
        _, exact_NH, exact_WH = run(None, hidden_NH * scale, head, SparseTargets(batch))
        assert angle(grad_NH, exact_NH) < 0.1 and angle(grad_WH, exact_WH) < 0.1
        with torch.no_grad():
            head.weight.mul_(scale)


def test_positions_without_weight_have_no_gradient(sparse_cache):
    batch = batch_of(sparse_cache, ROWS)
    hidden_NH, head = make(batch)
    for grad in run(torch.float16, hidden_NH, head, SparseTargets(batch | {"coefficient": 0 * batch["coefficient"]})):
        assert not grad.any()


@pytest.mark.parametrize("size", [1e-1, 1e-4, 1e-8])
def test_a_position_without_weight_leaves_the_gradients_of_the_others(sparse_cache, size):
    """A row that fills a batch has the coefficient 0, and the others may be small."""
    batch = batch_of(sparse_cache, ROWS)
    coefficient = torch.full_like(batch["coefficient"], size)
    coefficient[::3] = 0
    hidden_NH, head = make(batch)
    targets = SparseTargets(batch | {"coefficient": coefficient})
    _, grad_NH, grad_WH = run(torch.float16, hidden_NH, head, targets)
    _, exact_NH, exact_WH = run(None, hidden_NH, head, targets)
    assert angle(grad_NH, exact_NH) < 0.1 and angle(grad_WH, exact_WH) < 0.1
    assert not grad_NH[::3].any()


@pytest.mark.parametrize(
    ("device", "hidden", "weight", "autocast", "expected"),
    [
        ("cpu", torch.float32, torch.float32, torch.float16, None),
        ("cpu", torch.bfloat16, torch.bfloat16, None, None),
        ("cuda", torch.float32, torch.float32, None, None),
        ("cuda", torch.float32, torch.float32, torch.float16, torch.float16),
        ("cuda", torch.float32, torch.float32, torch.bfloat16, None),
        ("cuda", torch.bfloat16, torch.bfloat16, None, torch.bfloat16),
        ("cuda", torch.float16, torch.float16, None, torch.float16),
        ("cuda", torch.bfloat16, torch.float16, None, None),
    ],
)
def test_products_have_half_inputs_where_a_gpu_has_them_already_or_fp16_rounds_them(
    device, hidden, weight, autocast, expected, monkeypatch
):
    monkeypatch.setattr(products, "has_products", lambda *_: True)
    tensors = [SimpleNamespace(device=torch.device(device), dtype=dtype) for dtype in (hidden, weight)]
    assert half_of(*tensors, autocast) == expected


def test_a_torch_without_such_products_is_found_out_and_said(monkeypatch, caplog):
    assert products.has_products(torch.device("cpu"), torch.float16) and not caplog.records

    def refuses(*given, **named):
        raise NotImplementedError("mm with out_dtype")

    monkeypatch.setattr(products, "add_product_", refuses)
    monkeypatch.setattr(products.logger, "propagate", True)
    assert not products.has_products.__wrapped__(torch.device("cpu"), torch.float16)
    assert "the output layer is multiplied in float32: torch" in caplog.text and "mm with out_dtype" in caplog.text


def test_a_lack_of_memory_is_not_taken_for_a_lack_of_products(monkeypatch):
    def full(*given, **named):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(products, "multiply", full)
    with pytest.raises(torch.OutOfMemoryError):
        products.has_products.__wrapped__(torch.device("cpu"), torch.float16)
