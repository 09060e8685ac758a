"""The bytes that the kernels are said to read and write are those of their loads and stores in the interpreter."""

import pytest
import torch
from kernel_devices import INTERPRETED, speed_up_interpreter

from benchmarks.traffic import (
    PAIRS,
    Traffic,
    build_traffic,
    counted,
    own_threshold_traffic,
    student_traffic,
    torch_build_traffic,
)
from precompute.feeding.transfer import Transfer
from precompute.scoring.support import SupportRule
from shards import Divergence
from shards.format.nodes import StrengthNodes
from shards.format.schema import ROLES
from shards.teacher.divergence import Buckets

launch = pytest.importorskip("precompute.scoring.kernels.launch", reason="needs triton")
pytestmark = pytest.mark.skipif(not INTERPRETED, reason="the CPU needs TRITON_INTERPRET=1")

SIZE = 75


@pytest.fixture
def moved(monkeypatch):
    """Bytes that go to and from memory in the interpreter."""
    import triton.runtime.interpreter as interpreter

    speed_up_interpreter(monkeypatch)
    builder, found = interpreter.InterpreterBuilder, {"read": 0, "written": 0}

    def watch(name, kind, mask_at):
        run = getattr(builder, name)

        def watched(self, pointers, *rest):
            width = pointers.get_element_ty().primitive_bitwidth // 8
            found[kind] += int(rest[mask_at].data.sum()) * width
            return run(self, pointers, *rest)

        monkeypatch.setattr(builder, name, watched)

    watch("create_masked_load", "read", 0)
    watch("create_masked_store", "written", 1)
    return found


def near_models():
    torch.manual_seed(0)
    base_CV = 3 * torch.randn(1, SIZE)
    return {role: base_CV + 0.3 * torch.randn(1, SIZE) for role in ROLES}


@pytest.mark.parametrize("fixed", [False, True])
def test_the_builds_kernels_move_the_bytes_of_the_formula(moved, fixed):
    kernels = launch.TritonVocabulary(pairs=PAIRS, nodes=StrengthNodes(), tile_rows=2, tile_lanes=16, num_warps=1)
    rule = (
        SupportRule(lowest=9, highest=9, log_threshold=None)
        if fixed
        else SupportRule(lowest=1, highest=SIZE, log_threshold=-5.0)
    )
    scores = kernels.summarise(near_models(), torch.tensor([3]), rule).fetch(Transfer()).wait().scores
    wanted = sum(build_traffic(SIZE, scores.num_entries, tile=(2, 16)).values(), Traffic(0, 0))
    if fixed:  # the threshold is its own, and nothing is kept before it is known
        wanted += own_threshold_traffic(SIZE) + Traffic(-4, 0)
    assert (moved["read"], moved["written"]) == (wanted.read, wanted.written)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_students_kernel_moves_the_bytes_of_the_formula(moved, dtype):
    from student.loss.kernels import with_gradient_

    kept = 21
    buckets = Buckets(torch.tensor([kept]), torch.arange(kept), torch.full((kept,), -4.0), torch.tensor([-0.5]))
    gradient_CV = torch.empty(1, SIZE, dtype=dtype)
    tile = {"R": 2, "L": 16, "num_warps": 1}
    with_gradient_(Divergence(), torch.randn(1, SIZE), buckets, gradient_CV=gradient_CV, tile=tile)
    wanted = student_traffic(SIZE, kept, gradient_bytes=gradient_CV.element_size())
    assert (moved["read"], moved["written"]) == (wanted.read, wanted.written)


def test_torch_is_counted_operation_by_operation():
    a, b = torch.ones(10), torch.ones(10)
    assert counted(lambda: a + b) == Traffic(80, 40)
    assert counted(lambda: a.add_(b)) == Traffic(80, 40)
    assert counted(lambda: torch.add(a, b, out=a)) == Traffic(80, 40)
    assert counted(lambda: a.view(2, 5).t()) == Traffic(0, 0)
    assert counted(lambda: torch.empty_like(a)) == Traffic(0, 0)
    assert counted(lambda: a[:1].expand(10) + b) == Traffic(80, 40)  # an expanded tensor counts its storage, at most


def test_the_kernels_move_a_twentieth_of_what_torch_moves():
    kernels = sum(build_traffic(4096, 64).values(), Traffic(0, 0))
    assert 20 * kernels.total < torch_build_traffic(4096, 64).total
