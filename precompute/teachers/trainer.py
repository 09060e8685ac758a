"""A DPOTrainer that can be stopped at any time, and that reports errors of settings before its first step.

It fixes what TRL and Trainer do wrong for us: a checkpoint counts only when all of it is written, older ones are
removed only after that, and a training that has done all its steps does no more.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback, SchedulerType, TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import OptimizerNames
from trl import DPOTrainer

from precompute.teachers.folders import begin_checkpoint, remove_surplus, sign_checkpoint, step_of
from shards.cli.loads import SafeLoads
from shards.cli.outside import is_own_fault, naming, naming_saves
from shards.errors import OptionError
from shards.progress import progress
from shards.say import say

OF_THE_FIRST_STEP = (ValueError, ImportError, NotImplementedError, KeyError, RuntimeError)
"""Errors of libraries about settings when they are first used. A successful step shows that they are right."""

WORDS = {
    "loss": "loss {:.4g}",
    "rewards/accuracies": "{:.0%} of the pairs told right",
    "rewards/margins": "reward margin {:+.3g}",
    "learning_rate": "learning rate {:.3g}",
}
"""The figures of TRL's log that a line shows; the others are in trainer_state.json, and where --report_to says."""


class TeacherTrainer(SafeLoads, DPOTrainer):
    """A DPOTrainer whose data are already token ids. record: marks its checkpoints as complete."""

    def __init__(self, *, record: Mapping[str, Any], **given: Any) -> None:
        self.record = record
        with naming("DPOTrainer"):  # errors here are about its arguments and their consequences
            super().__init__(**given)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Trainer.train. Raises OptionError for errors of the first step, and for an early end."""
        begun = step_of(Path(resume_from_checkpoint)) if resume_from_checkpoint else 0
        try:
            result = super().train(resume_from_checkpoint, *args, **kwargs)
        except OF_THE_FIRST_STEP as exc:
            if self.state.global_step > begun or is_own_fault(exc):
                raise
            with naming("DPOTrainer, the first step"):
                raise exc
        made, wanted = self.state.global_step, self.state.max_steps
        if made < wanted:  # no batch in an epoch (--dataloader_drop_last), or asked to stop (--enable_jit_checkpoint)
            raise OptionError(f"{self.args.output_dir}: expected {wanted:,} steps, got an end after {made:,}")
        return result

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Trainer._run_epoch, except for a run that has done all its steps: Trainer would do one more."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
        else:
            self.control.should_training_stop = True

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """DPOTrainer._save_checkpoint. Marks the checkpoint when complete; only then are old ones removed."""
        args = self.args
        folder = Path(str(args.output_dir)) / f"checkpoint-{self.state.global_step}"
        limit, args.save_total_limit = args.save_total_limit, None
        try:
            with naming_saves(str(folder)):
                if self.is_world_process_zero():
                    begin_checkpoint(folder)
                self.accelerator.wait_for_everyone()
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()  # each process saves its own random state
                if self.is_world_process_zero():
                    sign_checkpoint(folder, self.record)
        finally:
            args.save_total_limit = limit
        if self.is_world_process_zero():
            remove_surplus(folder.parent, limit, folder)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer.create_optimizer; raises OptionError if it is not installed or lacks the given settings."""
        with naming(f"optim {OptimizerNames(self.args.optim).value}"):
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer.create_scheduler; raises OptionError if the schedule lacks the given settings."""
        with naming(f"lr_scheduler_type {SchedulerType(self.args.lr_scheduler_type).value}"):
            return super().create_scheduler(*args, **kwargs)


class StepsShown(TrainerCallback):
    """What a training shows: progress over its steps, and a line for each logged one. It takes the place of
    transformers' bar and dict of figures. role: the first word of every line."""

    def __init__(self, role: str) -> None:
        self.role = role
        self._bar: Any = None

    def take_place(self, trainer: Any) -> None:
        """Be added to a trainer, unless it is in a notebook, whose table of the steps stays."""
        shown = [trainer.pop_callback(kind) for kind in (PrinterCallback, ProgressCallback)]
        if any(callback is not None for callback in shown):
            trainer.add_callback(self)

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        off = args.disable_tqdm or not state.is_world_process_zero
        self._bar = progress(
            None, self.role, total=state.max_steps, unit="step", initial=state.global_step, disable=off
        )

    def on_substep_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._bar.update(round(1 / args.gradient_accumulation_steps, 4))

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        words = [text.format(logs[name]) for name, text in WORDS.items() if name in logs]
        if words and state.is_world_process_zero:
            self._bar.refresh()
            say(f"{self.role}, step {state.global_step:,} of {state.max_steps:,}: {', '.join(words)}")

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._bar.close()
