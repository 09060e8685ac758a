"""Checks before the first step that the student can be saved at the end: a trial save, and disk space."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import SaveStrategy
from transformers.utils import logging

from shards.cli.outside import naming, naming_saves
from shards.cli.space import require_training_fits
from shards.files import make_folder, remove_temporary_files, temporary_name
from student.log.files import STATE_FILE, checkpoints_of
from student.loss.forward import base_model
from student.runs.card import write_model_card


def try_saving(trainer: Any) -> None:
    """Save all parts of a checkpoint and of the student except the weights, and remove them again.

    Raises OptionError if that fails.
    """
    args, model = trainer.args, base_model(trainer.accelerator.unwrap_model(trainer.model))
    if not args.should_save:
        return
    out = Path(args.output_dir)
    with naming_saves("output_dir"):
        make_folder(out)
        if trainer.is_world_process_zero():
            remove_temporary_files(out)
        folder = temporary_name(out, "trial")
        try:
            with naming(f"saving the student in {out}"):
                _save_all_but_weights(trainer, model, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _save_all_but_weights(trainer: Any, model: Any, folder: Path) -> None:
    with _quietly():
        model.save_pretrained(folder, state_dict={})
    for adapter in getattr(trainer.model, "peft_config", {}).values():
        adapter.save_pretrained(folder)
    if trainer.processing_class is not None:
        trainer.processing_class.save_pretrained(folder)
    torch.save(trainer.args, folder / "training_args.bin")
    trainer.state.save_to_json(str(folder / STATE_FILE))
    write_model_card(trainer, folder)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Hide the progress bar for weights that are not saved."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    yield
    if shown:
        logging.enable_progress_bar()


def require_disk(trainer: Any, steps: int) -> None:
    """Raise OptionError if the disk has no room for the checkpoints of this many steps and for the student."""
    args = trainer.args
    if not args.should_save or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return
    kept, weights, checkpoint = _checkpoints_kept(trainer, steps), *_bytes(trainer)
    require_training_fits("output_dir", args.output_dir, "student", weights + kept * checkpoint, kept)


def _bytes(trainer: Any) -> tuple[int, int]:
    """Bytes of the saved student, and of a checkpoint: weights (or adapters), and Adam's two moments of each."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    moments = 8 * trained if trainer.args.optim.value in ("adamw_torch", "adamw_torch_fused") else 0
    saved = 4 * trained if hasattr(model, "peft_config") else whole
    return whole, saved + (0 if trainer.args.save_only_model else moments)


def _checkpoints_kept(trainer: Any, steps: int) -> int:
    """How many checkpoints the run adds at a time, at most; one more than the limit while one is replaced."""
    args = trainer.args
    if args.save_strategy == SaveStrategy.NO:
        return 0
    # `best` saves whenever an evaluation finds a new best one, and earlier ones stay
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
