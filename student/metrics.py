"""Sums of loss and metrics over micro-batches, and their means for the log."""

import time
from typing import Any

import torch

from student.loss.sparse import METRICS, WEAK_SUMS

PER_SEQUENCE = ("kl_reference", "kl_dpo", "expected_reward", "dpo_expected_reward")
"""Also logged as sums over a sequence, as in the released trainer."""


class MetricSums:
    """Sums of loss and metrics over micro-batches, kept on the device without waiting for it; and the time of steps."""

    def __init__(self) -> None:
        self._total: torch.Tensor | None = None
        self._step_began: float | None = None
        self._seconds = 0.0

    def begin_step(self) -> None:
        self._step_began = time.perf_counter()

    def end_step(self) -> None:
        """End the time of a step. Evaluation and checkpoints between steps are not counted."""
        if self._step_began is not None:
            self._seconds += time.perf_counter() - self._step_began
            self._step_began = None

    def add(self, outputs: dict[str, torch.Tensor], inputs: dict[str, torch.Tensor]) -> None:
        """Add one micro-batch: the output of DistillForward, and the collator's counts."""
        sums = [outputs["loss_sum"], inputs["num_sequences"], inputs["num_positions"]]
        device = outputs["loss_sum"].device
        row = torch.stack([value.detach().double().to(device) for value in sums])
        row = torch.cat([row, outputs["weak_sums"].double(), outputs["metrics"].double()])
        self._total = row if self._total is None else self._total + row

    def means(self, accelerator: Any, reduction: str) -> dict[str, float]:
        """Means over all ranks: loss, metrics per response token, some also per sequence. Empty without batches."""
        if self._total is None:
            return {}
        loss, sequences, positions, *sums = accelerator.reduce(self._total, reduction="sum").tolist()
        weak = dict(zip(WEAK_SUMS, sums, strict=False))
        of = dict(zip(METRICS, sums[len(WEAK_SUMS) :], strict=True))
        return {
            "loss": loss / (sequences if reduction == "sequence" else positions),
            **{name: total / positions for name, total in of.items()},
            **{f"{name}_per_sequence": of[name] / sequences for name in PER_SEQUENCE},
            "low_strength_loss_share": _share(weak["low_strength_loss"], loss),
            "low_strength_gradient_share": _share(weak["low_strength_gradient"], weak["gradient"]),
            **({"tokens_per_second": positions / self._seconds} if self._seconds else {}),
        }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
