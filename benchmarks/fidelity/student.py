"""What half precision does to a student's gradient: its angle to float32's, over all parameters.

The student goes from the reference to the teacher by training on the rows that are measured, in float32. A CPU's
autocast rounds inputs and results of matrix products as a GPU's does; here the products between are computed in
float32, which is fifty times faster on a CPU without half-precision units. The output layer's products are those of a
GPU (`student.loss.products`). The loss is scaled as fp16 training scales it.

Dimensions: P parameters.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.fidelity.dense import NODES
from precompute.check.sums import angle_degrees
from precompute.tokens.tokenized import TokenizedResponse
from shards import Divergence, TeacherSpec
from shards.format.scores import Scores
from student.data.collate import Collator
from student.data.responses import MicroBatch
from student.loss.forward import DistillForward
from student.loss.products import HALVES, half_of, half_on_gpu
from student.loss.sparse import SparseTargets

CAPS = (None, 1.0, 0.3)
STAGES = {"at the reference": 1.0, "half way": 1 / 4, "nearly there": 1 / 25}
"""Names of the students, and their loss as a share of the reference's: a quarter is half way in logits."""
RATE, MOST_STEPS, LOSS_SCALE = 1e-4, 200, 2.0**16

PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)
Half = Callable[..., torch.dtype | None]
WAYS: dict[str, tuple[torch.dtype | None, Half]] = {
    "float16 output layer, float32 body": (None, lambda *_: torch.float16),
    "bfloat16 output layer, float32 body": (None, lambda *_: torch.bfloat16),
    "fp16 autocast": (torch.float16, half_on_gpu),
    "bf16 autocast": (torch.bfloat16, half_on_gpu),
}
"""Name -> the dtype of the autocast, and which dtype the output layer's products have."""


def student_angles(
    model: Any, rows: Sequence[TokenizedResponse], scores: Scores, vocabulary_size: int
) -> list[dict[str, Any]]:
    """For every way and cap of the weight: angles in degrees and ratios of norms to float32's, at every stage.

    model: the reference, which is trained. scores: of the rows' positions.
    """
    model.set_attn_implementation("eager")  # of plain matrix products
    losses = {cap: _Loss(model, rows, scores, cap, vocabulary_size) for cap in CAPS}
    found: dict[tuple[str, float | None], dict[str, Any]] = {
        (way, cap): {"name": way, "max_weight": cap, "angle": [], "norm_ratio": []} for cap in CAPS for way in WAYS
    }
    for _ in _students(model, losses[None]):
        for cap, loss in losses.items():
            exact_P = loss.gradient(None, half_of)
            for way, (autocast, half) in WAYS.items():
                gradient_P = loss.gradient(autocast, half)
                squares = (float(v_P.double().square().sum()) for v_P in (exact_P, gradient_P, exact_P - gradient_P))
                found[way, cap]["angle"].append(angle_degrees(*squares))
                found[way, cap]["norm_ratio"].append(float(gradient_P.norm() / exact_P.norm()))
    return list(found.values())


class _Loss:
    """The loss of a student on all rows at once, under one cap of the weight."""

    def __init__(
        self,
        model: Any,
        rows: Sequence[TokenizedResponse],
        scores: Scores,
        cap: float | None,
        vocabulary_size: int,
    ) -> None:
        spec = replace(TeacherSpec(), max_weight=cap)
        collator = Collator(spec=spec, nodes=NODES, reduction="sequence", pad_token_id=0)
        tokens: Any = rows  # input ids and mask are all that is read
        self.model, self.vocabulary_size = model, vocabulary_size
        self.batch = collator(MicroBatch(tokens=tokens, counts=[True] * len(rows), scores=scores))

    def __call__(self, autocast: torch.dtype | None, half: Half) -> torch.Tensor:
        forward = DistillForward(
            self.model,
            vocabulary_size=self.vocabulary_size,
            divergence=Divergence(),
            chunk_positions=256,
            half_of=half,
        )
        around: AbstractContextManager[Any] = nullcontext() if autocast is None else torch.autocast("cpu", autocast)
        given = {name: self.batch[name] for name in ("input_ids", "attention_mask", "position")}
        with around:
            return forward(**given, targets=SparseTargets(self.batch))["loss_sum"] / self.batch["num_items"]

    def gradient(self, autocast: torch.dtype | None, half: Half) -> torch.Tensor:
        """Over all parameters, (P,), float32."""
        scale = LOSS_SCALE
        while True:
            parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            with _ProductsInFloat32():
                grads = torch.autograd.grad(self(autocast, half) * scale, parameters)
            gradient_P = torch.cat([grad.flatten() for grad in grads]) / scale
            if torch.isfinite(gradient_P).all():
                return gradient_P
            scale /= 2


class _ProductsInFloat32(TorchDispatchMode):
    """Computes matrix products of half-precision matrices in float32, and rounds the result."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        half = args[-1].dtype if func in PRODUCTS and isinstance(args[-1], torch.Tensor) else None
        if half not in HALVES:
            return func(*args, **(kwargs or {}))
        return func(*(tensor.float() for tensor in args), **(kwargs or {})).to(half)


def _students(model: Any, loss: _Loss) -> Iterator[str]:
    """Train `model` in float32 until its loss reaches that of each stage."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    first = float(loss(None, half_of).detach())
    for stage, share in STAGES.items():
        for _ in range(MOST_STEPS):
            now = loss(None, half_of)
            if float(now.detach()) <= share * first:
                break
            now.backward()
            optimizer.step()
            optimizer.zero_grad()
        yield stage
