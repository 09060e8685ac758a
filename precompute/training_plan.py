"""Before the first step: how many steps there are, how far they can go, and whether the disk has room for them."""

import math
import shutil
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

from shards.errors import OptionError

FEW_FULL, FEW_LORA = 1e-5, 1e-4
"""Sums of learning rates below which a training hardly moves its model. An Adam step moves a weight by its rate or so;
adapters begin at a product of zero, and go further at the same rate."""


class StepsThatMove(TrainerCallback):
    """Says how many steps a training has, and refuses one that moves nothing or does not fit onto the disk."""

    def __init__(self, say: Callable[[str], None], *, lora: bool) -> None:
        self.say, self.few = say, FEW_LORA if lora else FEW_FULL

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Raises OptionError where no step moves the model, and where the disk is too small."""
        state.compute_steps(args, state.max_steps)  # a checkpoint brings its own intervals; those given now count
        model, lr_scheduler = given["model"], given["lr_scheduler"]
        if isinstance(getattr(lr_scheduler, "scheduler", lr_scheduler), LambdaLR):
            self.say(f"{'steps':>11}  {steps_text(args, _rates(lr_scheduler, state.max_steps), self.few)}")
        if state.is_world_process_zero and hasattr(model, "save_pretrained"):
            require_disk(args, model, state)


def steps_text(args: Any, rates: Sequence[float], few: float) -> str:
    """Steps, those that move the model, and what to expect of few. Raises OptionError where none does."""
    steps, moving, warm_up = len(rates), sum(rate > 0 for rate in rates), args.get_warmup_steps(len(rates))
    if not moving:
        raise OptionError(
            f"learning_rate: expected a step with a rate above zero, got none in {steps:,} "
            f"(learning_rate {args.learning_rate:g}, warmup_steps {warm_up:,})"
        )
    if warm_up >= steps and max(rates) < args.learning_rate:
        raise OptionError(
            f"warmup_steps: expected fewer than the {steps:,} steps of the training, got {warm_up:,}: the rate "
            f"would rise to {max(rates):.2g} of {args.learning_rate:.2g} and no further"
        )
    text = f"{steps:,}, {moving:,} with a learning rate above zero, which add up to {sum(rates):.2g}"
    return text if sum(rates) >= few else f"{text}: few, the model will hardly move"


def _rates(scheduler: Any, steps: int) -> list[float]:
    """The learning rate of each step of a training: that of the weights that go fastest."""
    inner = getattr(scheduler, "scheduler", scheduler)
    return [
        max(base * factor(step) for base, factor in zip(inner.base_lrs, inner.lr_lambdas, strict=True))
        for step in range(steps)
    ]


def require_disk(args: Any, model: Any, state: Any) -> None:
    """Raise OptionError where the disk has no room for the model and for the checkpoints that are still to come."""
    whole = sum(p.numel() for p in model.parameters()) * 4
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) * 4
    moments = 2 if args.optim.value.startswith("adamw_torch") else 0
    kept = _checkpoints_kept(args, state)
    wanted, free = whole + kept * trained * (1 + moments), shutil.disk_usage(args.output_dir).free
    if free < wanted:
        raise OptionError(
            f"out: expected {wanted / 1e9:,.1f} GB free for the model and {kept:,} checkpoints, got "
            f"{free / 1e9:,.1f} in {args.output_dir}; --save_total_limit and --save_steps say how many are kept"
        )


def _checkpoints_kept(args: Any, state: Any) -> int:
    """How many checkpoints lie there at most at a time; one more than the limit while one is replaced."""
    left = state.max_steps - state.global_step
    match args.save_strategy:
        case SaveStrategy.STEPS if state.save_steps:
            count = -(-left // state.save_steps)
        case SaveStrategy.EPOCH:
            count = min(left, math.ceil(state.num_train_epochs))
        case _:
            count = 0
    return min(count, args.save_total_limit + 1) if args.save_total_limit else count
