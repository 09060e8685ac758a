"""What the dtype of the bodies costs, as the fidelity benchmark measures it: the emulation, and laws of its table."""

import pytest
import torch

from benchmarks.fidelity import measure
from benchmarks.fidelity.dense import load_roles, read_rows, score
from benchmarks.fidelity.dtypes import GAINS, Tf32Products, head_weights, score_in, table, to_tf32
from shards import TeacherSpec


@pytest.fixture(scope="module")
def rows(trio_folders, pairs_file):
    return read_rows(trio_folders, str(pairs_file), rows=6, max_length=64)


@pytest.fixture(scope="module")
def exact(trio_folders, rows):
    return score(load_roles(trio_folders, "float32"), rows, 30)


def test_tf32_keeps_ten_bits_to_nearest():
    value = torch.tensor([1.0, -1.0, 1 + 2**-10, 1 + 2**-11, -1 - 2**-11, 1 + 2**-11 - 2**-20, 3e-20, 0.0])
    wanted = torch.tensor([1.0, -1.0, 1 + 2**-10, 1 + 2**-10, -1 - 2**-10, 1.0, 3e-20, 0.0])
    torch.testing.assert_close(to_tf32(value), wanted, rtol=2**-11, atol=0)
    assert torch.equal(to_tf32(value)[:6], wanted[:6])


def test_products_of_bodies_are_rounded_and_heads_are_not():
    torch.manual_seed(0)
    x_NH, body, head = torch.randn(3, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    with torch.no_grad():
        wanted = head(x_NH)
    with torch.no_grad(), Tf32Products([head.weight]):
        assert torch.equal(head(x_NH), wanted)
        found = body(x_NH)
        product = torch.matmul(x_NH, x_NH.T)
    with torch.no_grad():
        rounded = torch.nn.functional.linear(to_tf32(x_NH), to_tf32(body.weight), body.bias)
        assert torch.equal(found, rounded) and not torch.equal(found, body(x_NH))
        torch.testing.assert_close(product, to_tf32(x_NH) @ to_tf32(x_NH).T, rtol=1e-6, atol=1e-6)
        assert not torch.allclose(product, x_NH @ x_NH.T, rtol=1e-6, atol=1e-6)


def test_a_trio_in_tf32_is_near_the_exact_one_and_not_it(trio_folders, rows, exact):
    rounded = score_in("tf32", trio_folders, rows, 30)
    for role, l_NV in rounded.logprobs.items():
        assert not torch.equal(l_NV, exact.logprobs[role])
        torch.testing.assert_close(l_NV, exact.logprobs[role], atol=0.02, rtol=0)


def test_every_head_is_found(trio_folders):
    models = load_roles(trio_folders, "float32")
    assert {w.shape[0] for w in head_weights(models)} == {m.model.config.vocab_size for m in models.values()}


def test_coarser_bodies_cost_more_and_float32_ones_only_support_and_codec(trio_folders, rows, exact):
    found = {(row["dtype"], row["gain"]): row for row in table(exact, trio_folders, rows, 30, 12)}
    for gain in GAINS:
        error = [found[dtype, gain]["error"] for dtype in ("bfloat16", "float16", "float32")]
        assert error[0] > 3 * error[1] > 0 and error[2] == 0
        plain = found["float32", gain]
        assert max(plain["alone"]) == 0
        chain = measure.compare_case(exact, measure.default_scores(exact, 12), TeacherSpec(gain=gain))
        assert plain["chain"] == pytest.approx(measure.row("", chain)["angle"], rel=1e-6)
        assert found["bfloat16", gain]["alone"][0] > found["float16", gain]["alone"][0] > 0
        assert found["bfloat16", gain]["chain"][0] > plain["chain"][0]
