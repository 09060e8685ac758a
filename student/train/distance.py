"""Measures how far a run moved its student: the same training responses before and after."""

from typing import Any

import torch

from shards.progress import progress
from student.data.order import BatchItem
from student.metrics import MetricSums

ROWS = 32
"""Responses to measure: two forward passes over them take a sixth of a step of the recipe."""

HARDLY_LOSS, HARDLY_KL = 1e-3, 1e-4
"""Relative change of the loss, and change of the KL in nats per token, below which a student has hardly moved. The
recipe's run changes them by a tenth and by hundredths."""


@torch.no_grad()
def measure(trainer: Any) -> dict[str, float] | None:
    """Loss and metrics of the current student on some training responses, over all ranks.

    None if the model is whole only during training (FSDP, DeepSpeed).
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return None
    args, data = trainer.args, trainer.train_dataset
    size = args.per_device_train_batch_size
    rows = data.sample(ROWS)
    items = [BatchItem(row, True) for row in rows]
    items += [BatchItem(rows[0], False)] * (-len(items) % args.world_size)  # the same number on every rank
    mine = items[args.process_index :: args.world_size]
    sums = MetricSums()
    was_training = trainer.model.training
    trainer.model.eval()
    off = args.disable_tqdm
    for start in progress(range(0, len(mine), size), "measuring the student", unit="batch", brief=True, disable=off):
        inputs = trainer._prepare_inputs(trainer.data_collator(data.__getitems__(mine[start : start + size])))
        with trainer.accelerator.autocast():  # before a training the model does not bring it
            sums.add(trainer._distill(trainer.model, inputs), inputs)
    trainer.model.train(was_training)
    return sums.means(trainer.accelerator, args.reduction) | {"rows": len(rows)}


def distance_text(before: dict[str, float] | None, after: dict[str, float] | None) -> str:
    """How far the student moved, in half a line; empty if it could not be measured."""
    if before is None or after is None:
        return ""
    loss, kl = ((before[name], after[name]) for name in ("loss", "kl_reference"))
    shown = [f"{max(0.0, round(value, 6)):g}" for value in kl]  # float32 gives about 1e-8 of either sign for 0
    text = (
        f"on {after['rows']:,} training responses loss {loss[0]:.4g} -> {loss[1]:.4g}, "
        f"KL to the reference {shown[0]} -> {shown[1]} nats a token"
    )
    still = abs(loss[1] - loss[0]) < HARDLY_LOSS * abs(loss[0]) and abs(kl[1] - kl[0]) < HARDLY_KL
    return f"{text}: the student has hardly moved" if still else text
