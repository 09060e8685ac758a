"""How far a run has moved its student: the same training responses before and after."""

from typing import Any

import torch

from shards.sample import spread
from student.data import BatchItem
from student.metrics import MetricSums

ROWS = 32
"""Responses that are measured: twice their forward passes is a sixth of a step of the recipe."""

HARDLY = 1e-4
"""A change of the loss, and of the KL in nats a token, below which a student has hardly moved: a run of the recipe
changes the first by hundredths and more."""


@torch.no_grad()
def measure(trainer: Any) -> dict[str, float] | None:
    """Loss and metrics of the student as it is, on some training responses, over all ranks.

    None where the model is whole only while it trains (FSDP, DeepSpeed).
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return None
    args, data = trainer.args, trainer.train_dataset
    size = args.per_device_train_batch_size
    rows = spread(len(data), ROWS)
    items = [BatchItem(row, True) for row in rows]
    items += [BatchItem(rows[0], False)] * (-len(items) % args.world_size)  # every rank has as many
    mine = items[args.process_index :: args.world_size]
    sums = MetricSums()
    was_training = trainer.model.training
    trainer.model.eval()
    for start in range(0, len(mine), size):
        inputs = trainer._prepare_inputs(trainer.data_collator(data.__getitems__(mine[start : start + size])))
        with trainer.compute_loss_context_manager():
            sums.add(trainer._distill(trainer.model, inputs), inputs)
    trainer.model.train(was_training)
    return sums.means(trainer.accelerator, args.reduction) | {"rows": len(rows)}


def distance_text(before: dict[str, float] | None, after: dict[str, float] | None) -> str:
    """How far the student went, in half a line; empty where it could not be measured."""
    if before is None or after is None:
        return ""
    loss, kl = ((before[name], after[name]) for name in ("loss", "kl_reference"))
    text = (
        f"on {after['rows']:,} training responses loss {loss[0]:.4g} -> {loss[1]:.4g}, "
        f"KL to the reference {kl[0]:.2g} -> {kl[1]:.2g} nats a token"
    )
    still = abs(loss[1] - loss[0]) < HARDLY * abs(loss[0]) and abs(kl[1] - kl[0]) < HARDLY
    return f"{text}: the student has hardly moved" if still else text
