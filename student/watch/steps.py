"""Steps: the samples, losses and gradient norms of optimizer steps, as they passed through the loss; read late.

B sequences of a micro-batch.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object

from student.data.order import FILLS

MOST = 100
"""Steps after which they are looked at, also where nothing is logged or saved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatchLoss:
    """The rows of the data set in a micro-batch of this rank, in its order, and its part of the step's loss."""

    rows: list[int]
    loss: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """An optimizer step.

    norm   of the gradient; None if the scaler of fp16 skipped the step, or where there is none
    """

    number: int
    micro_batches: list[MicroBatchLoss]
    norm: Any

    def gathered(self) -> list[list[tuple[list[int], float]]]:
        """For each rank its micro-batches: rows and loss. All ranks must ask."""
        mine = [(part.rows, float(part.loss)) for part in self.micro_batches]
        found: list[list[tuple[list[int], float]]] = gather_object([mine])
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The loss of a step over all its rows, and the norm of its gradient; None as in `Step`."""

    step: Step
    loss: float
    norm: float | None

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and (self.norm is None or math.isfinite(self.norm))


class Steps:
    """Collects steps without waiting for the device; `look` waits, once for all steps since the look before."""

    def __init__(self) -> None:
        self._parts: list[MicroBatchLoss] = []
        self._ended: deque[Step] = deque()

    def add(self, rows_B: torch.Tensor, loss: torch.Tensor) -> None:
        """Add a micro-batch of the step that is under way; both as they are given to, and come from, the loss."""
        self._parts.append(MicroBatchLoss(rows=rows_B.tolist(), loss=loss.detach()))

    def end(self, number: int, norm: Any) -> Step | None:
        """End the step that is under way; None if there is none."""
        if not self._parts:
            return None
        step = Step(number=number, micro_batches=self._parts, norm=norm)
        self._ended.append(step)
        self._parts = []
        return step

    @property
    def are_many(self) -> bool:
        return len(self._ended) >= MOST

    def look(self, accelerator: Any) -> list[Health]:
        """The steps since the look before, oldest first: the same numbers on all ranks, which must all ask."""
        steps = [*self._ended]
        self._ended.clear()
        if not steps:
            return []
        rows = [torch.stack([_sum(step), _plain(step.norm, like=_sum(step))]) for step in steps]
        table = accelerator.reduce(torch.stack(rows), reduction="mean").tolist()
        return [
            Health(step=step, loss=loss, norm=None if step.norm is None else norm)
            for step, (loss, norm) in zip(steps, table, strict=True)
        ]


def _sum(step: Step) -> torch.Tensor:
    return torch.stack([part.loss for part in step.micro_batches]).sum().float()


def _plain(norm: Any, like: torch.Tensor) -> torch.Tensor:
    """A norm as a tensor of this device: it may be None, a number, or a tensor that is spread over the ranks."""
    if isinstance(norm, torch.Tensor):
        whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return whole.detach().to(like)
    return torch.full_like(like, 0.0 if norm is None else norm)


def in_order(ranks: list[list[list[int]]]) -> list[int]:
    """The rows of a step in the order of its global batch, without those that only fill it.

    ranks: for each rank its micro-batches. Ranks take turns inside the micro-batches that run at the same time.
    """
    together = zip(*ranks, strict=True)  # micro-batches that run at the same time
    turns = (zip(*parts, strict=True) for parts in together)
    return [row for parts in turns for turn in parts for row in turn if row != FILLS]
