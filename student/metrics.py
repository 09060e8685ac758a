"""Sums of loss and metrics over micro-batches, and the means that are logged."""

import time
from typing import Any

import torch

from student.loss import METRICS

PER_SEQUENCE = ("kl_reference", "kl_dpo", "expected_reward", "dpo_expected_reward")
"""Logged as sums over a sequence too, as the released trainer does."""


class MetricSums:
    """Sums of loss and metrics over micro-batches, on the device, without waiting for it."""

    def __init__(self) -> None:
        self._total: torch.Tensor | None = None
        self._start = time.perf_counter()

    def add(self, outputs: dict[str, torch.Tensor], inputs: dict[str, torch.Tensor]) -> None:
        counts = [inputs["num_sequences"].double(), inputs["num_positions"].double()]
        loss = outputs["loss_sum"].detach().double()
        row = torch.stack([loss, *(count.to(loss.device) for count in counts), *outputs["metrics"].double()])
        self._total = row if self._total is None else self._total + row

    def seconds(self) -> float:
        return time.perf_counter() - self._start

    def means(self, accelerator: Any, reduction: str) -> dict[str, float]:
        """Over all ranks: loss, metrics per response token, and KL and reward per sequence. Empty without batches."""
        if self._total is None:
            return {}
        loss, sequences, positions, *sums = accelerator.reduce(self._total, reduction="sum").tolist()
        of = dict(zip(METRICS, sums, strict=True))
        per_sequence = {f"{name}_per_sequence": of[name] / sequences for name in PER_SEQUENCE}
        means = {name: total / positions for name, total in of.items()}
        loss_mean = loss / (sequences if reduction == "sequence" else positions)
        return {"loss": loss_mean, **means, **per_sequence, "num_positions": positions}
