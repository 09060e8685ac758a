"""Checks that a run's learning rates can move the student: its steps, and their rates."""

import copy
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from shards.cli.outside import naming
from shards.errors import OptionError

FEW_STEPS = 20
"""With fewer steps of a rate above zero, a student hardly moves at the recipe's rate: they add up to about 1e-5, and
those of the recipe's run, about 500, to 3e-4. An Adam step moves a weight by about its rate."""


def rates(args: Any, steps: int) -> list[float]:
    """The learning rate of each step. For a schedule that follows the evaluation's loss, always its first rate.

    Raises OptionError if the schedule does not accept its arguments.
    """
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate)
    with naming("lr_scheduler_kwargs"):
        schedule = get_scheduler(
            args.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=copy.deepcopy(args.lr_scheduler_kwargs),
        )
        if not isinstance(schedule, LambdaLR):
            return [args.learning_rate] * steps
        (factor,) = schedule.lr_lambdas
        return [args.learning_rate * factor(step) for step in range(steps)]


def require_steps_that_move(args: Any, steps: int) -> None:
    """Raise OptionError for a run that ends before its learning rate rises. A schedule may have no warm-up."""
    warm_up, highest = args.get_warmup_steps(steps), max(rates(args, steps))
    if warm_up >= steps and highest < args.learning_rate:
        raise OptionError(
            f"warmup_steps: expected fewer than the run's {steps}, got {warm_up}: the student would hardly change; "
            "lower --global_batch_size, train for longer or give --warmup_steps 0"
        )
    if args.learning_rate > 0 and highest <= 0:
        raise OptionError(f"lr_scheduler_type: expected a rate above zero in one of the run's {steps} steps, got none")
    if highest > args.learning_rate * (1 + 1e-6):
        raise OptionError(
            f"lr_scheduler_kwargs: expected rates up to the learning_rate of {args.learning_rate:g}, got {highest:g}"
        )


def steps_texts(args: Any, steps: int, batch: int) -> tuple[str, str]:
    """Steps, and those that move the student; and what to expect if they are few, else nothing."""
    found = rates(args, steps)
    moving = sum(rate > 0 for rate in found)
    text = f"{steps:,}, each of {batch:,} responses; {moving:,} with a rate above zero, adding up to {sum(found):.2g}"
    few = (
        "they may hardly move the student: the default recipe is meant for thousands of pairs, with rates that add up "
        "to some 3e-4; lower --global_batch_size, raise --learning_rate or train for more epochs"
    )
    return text, few if moving < FEW_STEPS else ""
