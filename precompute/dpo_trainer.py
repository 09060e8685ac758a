"""A DPOTrainer that can be stopped anywhere, and that says before its first step what would end it.

It owns what TRL and Trainer would get wrong: a checkpoint counts when all of it is written, older ones are removed only
then, and a training that has all its steps behind it makes no more.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import SchedulerType
from transformers.trainer_utils import rotate_checkpoints
from transformers.training_args import OptimizerNames
from trl import DPOTrainer

from precompute.teacher_folders import begin_checkpoint, sign_checkpoint, step_of
from shards.errors import OptionError
from shards.outside import is_own_fault, naming, naming_saves

OF_THE_FIRST_STEP = (ValueError, ImportError, NotImplementedError, KeyError, RuntimeError)
"""What libraries raise about settings when they are first used. A step that went well shows that they are right."""


class TeacherTrainer(DPOTrainer):
    """A DPOTrainer whose data are token ids already. record: what its checkpoints are signed with."""

    def __init__(self, *, record: Mapping[str, Any], **given: Any) -> None:
        self.record = record
        with naming("DPOTrainer"):  # what it refuses are its arguments, and where they lead
            super().__init__(**given)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Trainer.train. Raises OptionError for what the first step finds wrong, and for an early end."""
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
        """Trainer._run_epoch, but for a run that has all its steps behind it: Trainer would make one more."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
        else:
            self.control.should_training_stop = True

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """DPOTrainer._save_checkpoint. The checkpoint is signed once it is whole; only then are old ones removed."""
        args = self.args
        folder = Path(str(args.output_dir)) / f"checkpoint-{self.state.global_step}"
        limit, args.save_total_limit = args.save_total_limit, None
        try:
            with naming_saves(str(folder)):
                if self.is_world_process_zero():
                    begin_checkpoint(folder)
                self.accelerator.wait_for_everyone()
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()  # each has its own random state to save
                if self.is_world_process_zero():
                    sign_checkpoint(folder, self.record)
        finally:
            args.save_total_limit = limit
        if self.is_world_process_zero():
            rotate_checkpoints(str(args.output_dir), limit, self.state.best_model_checkpoint, use_mtime=True)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer.create_optimizer; raises OptionError for one that is not installed, or has no such settings."""
        with naming(f"optim {OptimizerNames(self.args.optim).value}"):
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer.create_scheduler; raises OptionError where the schedule has no such settings."""
        with naming(f"lr_scheduler_type {SchedulerType(self.args.lr_scheduler_type).value}"):
            return super().create_scheduler(*args, **kwargs)
