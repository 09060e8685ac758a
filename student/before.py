"""What a run needs at its end, tried before its first step: weights that can move, and a student that can be saved."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.trainer_utils import SaveStrategy
from transformers.utils import logging

from shards.errors import OptionError, first_line
from shards.outside import naming, naming_saves
from student.card import write_model_card
from student.checkpoints import checkpoints_of
from student.forward import base_model


class _KeptGenerationConfig(GenerationConfig):
    """A generation config that is saved as it is. transformers saves no config that it finds fault with."""

    def validate(self, *args: Any, **kwargs: Any) -> None:
        """Find no fault: the student gets what the model that it started from has."""


def keep_generation_config(model: Any) -> str | None:
    """See that a generation config can be saved, whatever it holds. Returns the fault that transformers finds."""
    config = getattr(model, "generation_config", None)
    if config is None:
        return None
    try:
        config.validate(strict=True)
    except ValueError as exc:
        config.__class__ = _KeptGenerationConfig
        return f"generation_config.json as it is, though transformers finds fault with it: {first_line(exc)}"
    return None


def try_saving(trainer: Any) -> None:
    """Save all that a checkpoint and the student consist of, but for the weights, and remove it again.

    Raises OptionError where that cannot be done.
    """
    args, model = trainer.args, base_model(trainer.accelerator.unwrap_model(trainer.model))
    if not args.should_save:
        return
    out = Path(args.output_dir)
    with naming_saves("output_dir"):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".trial-") as folder, naming("saving the student"):
            with _quietly():
                model.save_pretrained(folder, state_dict={})
            for adapter in getattr(trainer.model, "peft_config", {}).values():
                adapter.save_pretrained(folder)
            if trainer.processing_class is not None:
                trainer.processing_class.save_pretrained(folder)
            torch.save(args, Path(folder) / "training_args.bin")
            trainer.state.save_to_json(str(Path(folder) / "trainer_state.json"))
            write_model_card(trainer, Path(folder))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """No progress bar over weights that are not saved."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    yield
    if shown:
        logging.enable_progress_bar()


def require_disk(trainer: Any, steps: int) -> None:
    """Raise OptionError where the disk has no room for the checkpoints of so many steps and for the student."""
    args = trainer.args
    if not args.should_save or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return
    kept, weights, checkpoint = _checkpoints_kept(trainer, steps), *_bytes(trainer)
    free = shutil.disk_usage(args.output_dir).free
    wanted = weights + kept * checkpoint
    if free < wanted:
        raise OptionError(
            f"output_dir: expected {wanted / 1e9:,.1f} GB free for the student and {kept:,} checkpoints, got "
            f"{free / 1e9:,.1f} in {args.output_dir}; --save_total_limit and --save_steps say how many are kept"
        )


def _bytes(trainer: Any) -> tuple[int, int]:
    """Of the saved student, and of a checkpoint: weights (or adapters), and two moments of each where Adam has them."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    moments = 8 * trained if trainer.args.optim.value in ("adamw_torch", "adamw_torch_fused") else 0
    saved = 4 * trained if hasattr(model, "peft_config") else whole
    return whole, saved + (0 if trainer.args.save_only_model else moments)


def _checkpoints_kept(trainer: Any, steps: int) -> int:
    """How many checkpoints the run adds at most at a time; one more than the limit while one is replaced."""
    args = trainer.args
    if args.save_strategy == SaveStrategy.NO:
        return 0
    # `best` saves wherever an evaluation finds a new best one, and those before it stay
    best = args.save_strategy == SaveStrategy.BEST
    strategy, every = (args.eval_strategy, args.eval_steps) if best else (args.save_strategy, args.save_steps)
    if strategy.value == "epoch":
        every = trainer.sampler.num_global_batches
    elif every < 1:
        every = max(1, int(every * trainer.num_steps))
    count = -(-steps // every)
    if args.save_total_limit is not None:
        count = min(count, max(0, args.save_total_limit + 1 - len(checkpoints_of(Path(args.output_dir)))))
    return count
