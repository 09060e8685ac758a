"""A Trainer that can be stopped at any time: its checkpoints, and how a run resumes from one.

It fixes what Trainer does wrong for us: a checkpoint counts only when it is complete; a run resumes from the newest
complete one, and only if that belongs to the same run; a run that has done all its steps does no more. A run that
starts with overwrite_output_dir removes the checkpoints of earlier runs, so that the newest one is its own. Errors that
would end a run before its first step, or prevent saving its student, are found before that step.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch.optim.lr_scheduler import LambdaLR
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.training_args import OptimizerNames
from transformers.utils import logging

from shards.cli.loads import SafeLoads
from shards.cli.outside import is_own_fault, naming, naming_saves
from shards.errors import OptionError
from shards.modelfiles.generation import keep_generation_config
from shards.modelfiles.trained_precision import require_float32
from shards.say import say
from student.data.order import GlobalBatchSampler
from student.launched import require_as_launched, require_same_sharding
from student.loss.forward import base_model
from student.options import DistillArguments
from student.precision import ScalingTrainer
from student.recipe import CHANGED, OF_GROUPS, change_text
from student.runs import checkpoints
from student.runs.before import require_disk, try_saving
from student.runs.identity import student_identity
from student.runs.outside import OF_THE_FIRST_STEP, naming_processes, naming_workers
from student.runs.processes import alone
from student.runs.schedule import require_steps_that_move

logger = logging.get_logger(__name__)


class ResumableTrainer(SafeLoads, ScalingTrainer):
    """A Trainer whose checkpoints are either complete or not used. A subclass defines its runs' identity and order."""

    args: DistillArguments
    sampler: GlobalBatchSampler

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        require_float32(model)
        with naming("transformers' Trainer"):  # errors here are about its arguments and their consequences
            super().__init__(model, *args, **kwargs)
        require_as_launched(self)
        self.generation_config_fault = keep_generation_config(base_model(model))
        self._student: dict[str, str | None] = {}
        self.changed: list[dict[str, Any]] = []

    @abstractmethod
    def identity_with(self, student: Mapping[str, str | None]) -> dict[str, Any]:
        """The identity of a run, as JSON values; its checkpoints must have the same. student: what it starts from."""

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""

    def run_identity(self) -> dict[str, Any]:
        """The identity of the run: caches, student, teacher, loss, order and recipe; and what was not always the same.

        A resumed run must have the same. The student is known once train() has started.
        """
        return self.identity_with(self._student) | ({CHANGED: self.changed} if self.changed else {})

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Trainer.train; it resumes from the newest complete checkpoint if resume_from_checkpoint is True.

        Raises CacheConflict if the checkpoint belongs to another run, or another command is at work in the folder,
        CacheDamaged if the checkpoint is incomplete, and OptionError for errors that would end the run before its first
        step, or prevent saving at its end.
        """
        with alone(Path(str(self.args.output_dir))):
            return self._train(resume_from_checkpoint, *args, **kwargs)

    def _train(self, resume_from_checkpoint: Any, *args: Any, **kwargs: Any) -> Any:
        out = Path(str(self.args.output_dir))
        checkpoint, left_aside = checkpoints.checkpoint_to_resume(resume_from_checkpoint, out)
        if resume_from_checkpoint is True:
            checkpoint = checkpoints.require_found(checkpoint, out)
        if left_aside and self.is_world_process_zero():
            logger.warning(left_aside)
        self.require_ready(checkpoint)
        self._remove_earlier(checkpoint)
        begun = 0 if checkpoint is None else checkpoints.step_of(checkpoint)
        try:
            with naming_processes(), naming_workers():
                return super().train(None if checkpoint is None else str(checkpoint), *args, **kwargs)
        except OF_THE_FIRST_STEP as exc:
            if self.state.global_step > begun or is_own_fault(exc):
                raise
            with naming("the first step"):
                raise exc

    def require_ready(self, checkpoint: Path | None = None) -> None:
        """Raise if a run could not start, or resume from the checkpoint, or could not be saved. See train()."""
        require_steps_that_move(self.args, self.num_steps)
        if not self._student:
            # from the first process, whose weights all others get
            first = student_identity(self.model) if self.is_world_process_zero() else {}
            (self._student,) = broadcast_object_list([first])
            try_saving(self)
        checkpoints.require_all_ours(Path(str(self.args.output_dir)))
        self._goes_on_from(checkpoint)
        if checkpoint is not None:
            require_same_sharding(self, checkpoint)
        require_disk(self, self.num_steps - (0 if checkpoint is None else checkpoints.step_of(checkpoint)))

    def _goes_on_from(self, checkpoint: Path | None) -> None:
        """Raise if the run cannot continue from a checkpoint. Note, and say once, what is not as it was there."""
        despite, told = self.args.resume_despite, self.changed
        if self.is_deepspeed_enabled and (kept := sorted(OF_GROUPS.keys() & set(despite))):
            raise OptionError(f"resume_despite: expected no {kept[0]} under DeepSpeed, which keeps the checkpoint's")
        self.changed = []
        if checkpoint is not None:
            identity = self.identity_with(self._student)
            earlier, now = checkpoints.require_checkpoint(checkpoint, identity, self.num_steps, despite)
            self.changed = earlier + now
            if now and self.changed != told and self.is_world_process_zero():
                say(f"{checkpoint}: goes on despite another {'; '.join(map(change_text, now))}")

    def _remove_earlier(self, checkpoint: Path | None) -> None:
        """Remove unfinished checkpoints; with overwrite_output_dir all, unless this run resumes from one of them."""
        out = Path(str(self.args.output_dir))
        self.accelerator.wait_for_everyone()  # until no rank reads them any more
        goes_on = checkpoint is not None and checkpoint.resolve().parent == out.resolve()
        if self.args.should_save:
            with naming_saves(str(out)):
                checkpoints.remove_unfinished(out)
                if self.args.overwrite_output_dir and not goes_on:
                    checkpoints.remove_all(out)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Trainer._run_epoch, except for a run that has done all its steps: Trainer would do one more.

        The sampler does not make the micro-batches that Trainer skips in the epoch that a run resumes in.
        """
        resumed = kwargs["resume_from_checkpoint"] is not None and kwargs["epoch"] == kwargs["epochs_trained"]
        self.sampler.skips = kwargs["steps_trained_in_current_epoch"] if resumed else 0
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
        else:
            self.control.should_training_stop = True

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Trainer's own, except for the next rate: the checkpoint's rate belongs to the run's length at that time."""
        asked = [dict(group) for group in self.optimizer.param_groups] if self.optimizer is not None else []
        super()._load_optimizer_and_scheduler(checkpoint)
        schedule = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)  # accelerate wraps it
        if checkpoint is not None:
            self._set_groups(asked, schedule)
        if checkpoint is not None and isinstance(schedule, LambdaLR):
            steps = schedule.last_epoch
            found = [base * at(steps) for base, at in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
            for group, rate in zip(schedule.optimizer.param_groups, found, strict=True):
                group["lr"] = rate
            schedule._last_lr = found  # this one is logged

    def _set_groups(self, asked: Sequence[Mapping[str, Any]], schedule: Any) -> None:
        """Give an optimizer the values of --resume_despite, in place of its checkpoint's. asked: groups of this run."""
        names = [name for name in OF_GROUPS if name in self.args.resume_despite]
        for name in names:
            for group, wanted in zip(self.optimizer.param_groups, asked, strict=True):
                if OF_GROUPS[name] in wanted:
                    group[OF_GROUPS[name]] = wanted[OF_GROUPS[name]]
        if "learning_rate" in names:
            if not isinstance(schedule, LambdaLR):
                got = type(schedule).__name__
                raise OptionError(f"resume_despite: expected a rate that depends on the step alone, got {got}")
            schedule.base_lrs = [group["initial_lr"] for group in asked]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Trainer._save_checkpoint. Marks the checkpoint when complete, and only then uploads it. Older ones stay."""
        args, out = self.args, Path(self._get_output_dir(trial))
        folder = out / f"checkpoint-{self.state.global_step}"
        asked = {"save_total_limit": args.save_total_limit, "push_to_hub": args.push_to_hub}
        with naming_saves(str(folder)):
            if args.should_save:
                checkpoints.begin(folder, self.run_identity())
            self.accelerator.wait_for_everyone()
            args.save_total_limit, args.push_to_hub = None, False
            try:
                super()._save_checkpoint(model, trial)
            finally:
                args.__dict__.update(asked)
            self.accelerator.wait_for_everyone()
            if args.should_save:
                torch.save(args, folder / TRAINING_ARGS_NAME)
                checkpoints.sign(folder, self.run_identity(), weights_only=args.save_only_model)
        if args.push_to_hub:
            self._push_from_checkpoint(str(folder))

    def rotate_checkpoints(self) -> None:
        """Remove the oldest checkpoints, so that save_total_limit of them and the best one are left."""
        args = self.args
        if args.should_save:
            out = Path(str(args.output_dir))
            newest = out / f"checkpoint-{self.state.global_step}"
            checkpoints.remove_surplus(out, args.save_total_limit, self.state.best_model_checkpoint, newest)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer.create_optimizer; raises OptionError if the optimizer is not installed or lacks the given options."""
        with naming(f"optim: {OptimizerNames(self.args.optim).value}"):
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer.create_scheduler; raises OptionError if the schedule lacks the given arguments."""
        with naming("lr_scheduler_kwargs"):
            return super().create_scheduler(*args, **kwargs)
