"""Checks before the first step of a training: number of steps, learning rate, disk space, saving the model."""

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

from shards.cli.outside import naming, naming_saves
from shards.cli.space import require_training_fits
from shards.errors import OptionError
from shards.files import remove_temporary_files, temporary_name
from shards.modelfiles.find import ModelFolder

GENERATION_FILE = "generation_config.json"
FEW_FULL, FEW_LORA = 1e-5, 1e-4
"""Sums of learning rates below which a training hardly changes its model. An Adam step moves a weight by about its
rate; adapters start with a product of zero, and move further at the same rate."""


def require_mergeable(model: Any) -> None:
    """Raise OptionError for an adapter of an embedding that shares its weight with the output layer.

    Merging would change the output layer too, which was not changed during the training.
    """
    inner = model.get_base_model()
    if getattr(inner.config, "tie_word_embeddings", False) and hasattr(inner.get_input_embeddings(), "base_layer"):
        raise OptionError(
            "lora_target_modules: expected no embedding that is tied to the output layer, which a merged adapter would "
            "change too, got one"
        )


def carry_generation_config(reference: ModelFolder, folder: Path) -> None:
    """Put the reference's own file beside weights trained from it; TRL and Trainer change the config they load."""
    source = (reference.base or reference).path / GENERATION_FILE
    if source.is_file():
        shutil.copyfile(source, folder / GENERATION_FILE)


def try_saving(model: Any, tokenizer: Any, work: Path) -> None:
    """Save all parts of a model folder except the weights, and remove it again. Raises OptionError."""
    with naming_saves("out"):
        remove_temporary_files(work)
        folder = temporary_name(work, "trial")
        try:
            with naming(f"saving the model in {work}"):
                model.save_pretrained(folder, state_dict={})
                tokenizer.save_pretrained(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class StepsThatMove(TrainerCallback):
    """Reports the number of steps, and refuses a training that moves nothing or does not fit on the disk."""

    def __init__(self, say: Callable[[str], None], *, lora: bool) -> None:
        self.say, self.few = say, FEW_LORA if lora else FEW_FULL

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Raises OptionError if no step moves the model, or if the disk is too small."""
        state.compute_steps(args, state.max_steps)  # use the intervals given now, not those of the checkpoint
        model, lr_scheduler = given["model"], given["lr_scheduler"]
        if isinstance(getattr(lr_scheduler, "scheduler", lr_scheduler), LambdaLR):
            self.say(f"{'steps':>11}  {steps_text(args, _rates(lr_scheduler, state.max_steps), self.few)}")
        if state.is_world_process_zero and hasattr(model, "save_pretrained"):
            require_disk(args, model, state)


def steps_text(args: Any, rates: Sequence[float], few: float) -> str:
    """The steps, those that move the model, and a warning if they are few. Raises OptionError if none moves it."""
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
    """The learning rate of each step of a training: the highest of all weights."""
    inner = getattr(scheduler, "scheduler", scheduler)
    return [
        max(base * factor(step) for base, factor in zip(inner.base_lrs, inner.lr_lambdas, strict=True))
        for step in range(steps)
    ]


def require_disk(args: Any, model: Any, state: Any) -> None:
    """Raise OptionError if the disk has no room for the model and for the checkpoints still to come."""
    whole = sum(p.numel() for p in model.parameters()) * 4
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) * 4
    moments = 2 if args.optim.value.startswith("adamw_torch") else 0
    kept = _checkpoints_kept(args, state)
    require_training_fits("out", args.output_dir, "model", whole + kept * trained * (1 + moments), kept)


def _checkpoints_kept(args: Any, state: Any) -> int:
    """How many checkpoints exist at a time, at most; one more than the limit while one is replaced."""
    left = state.max_steps - state.global_step
    match args.save_strategy:
        case SaveStrategy.STEPS if state.save_steps:
            count = -(-left // state.save_steps)
        case SaveStrategy.EPOCH:
            count = min(left, math.ceil(state.num_train_epochs))
        case _:
            count = 0
    return min(count, args.save_total_limit + 1) if args.save_total_limit else count
