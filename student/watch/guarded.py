"""A Trainer that stops at a bad step, before anything bad is saved, and can record what each step trained on.

The figures of a step stay on the device until something else waits for it: a line of the log, a checkpoint, an
evaluation, the end. So a bad step may be noticed late, but always before the next checkpoint. A checkpoint is removed
for a newer one only when a step after the newer one was good: until then nobody knows whether its weights are.
"""

from abc import abstractmethod
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from shards.errors import BadStep
from student.data.responses import CachedResponses
from student.log.files import STOPPED_FILE
from student.runs.processes import by_first_process
from student.runs.resumable import ResumableTrainer
from student.watch.samples import SampleLog
from student.watch.spikes import Spikes
from student.watch.steps import Health, Step, Steps, in_order
from student.watch.stopped import plain, stopped_text

LEAST_LOSS_SCALE = 1e-4
"""The scale of fp16 under which a run stops, as in fairseq: gradients leave float16's range at any scale."""

FIGURES = {"loss": "loss", "norm": "grad_norm"}
"""What may spike: the field of Health, and its name in the log."""


class GuardedTrainer(ResumableTrainer):
    """A ResumableTrainer that raises BadStep. A subclass adds each micro-batch to `steps`."""

    train_dataset: CachedResponses

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps = Steps()
        self._last: Step | None = None
        self._spikes: dict[str, Spikes] = {}
        self._unsure: int | None = None  # the step of a checkpoint after which no step was looked at
        self._samples = SampleLog(Path(str(self.args.output_dir))) if self.args.record_samples else None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """ResumableTrainer.train. Raises BadStep too."""
        found = super().train(*args, **kwargs)
        self._require_finite_weights()
        self._remove_older()
        return found

    @abstractmethod
    def write_log(self) -> None:
        """Write the log so far into the run's folder."""

    def begin_watch(self) -> None:
        """Start from the log so far, which is that of the checkpoint in a resumed run."""
        log = [entry for entry in self.state.log_history if "loss" in entry and entry["step"] <= self.state.global_step]
        for field, name in FIGURES.items():
            self._spikes[field] = Spikes(self.args.spike_factor if self.args.stop_on_spike else None)
            self._spikes[field].remember(entry[name] for entry in log if name in entry)
        self.steps, self._last, self._unsure = Steps(), None, None
        if self.is_world_process_zero():
            (Path(str(self.args.output_dir)) / STOPPED_FILE).unlink(missing_ok=True)
            if self._samples is not None:
                self._samples.begin(self.state.global_step)

    def _maybe_log_save_evaluate(self, tr_loss: Any, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        """Trainer's own, after a look at the steps; of a bad one only the line is logged."""
        skipped = bool(self.accelerator.optimizer_step_was_skipped)
        if (step := self.steps.end(self.state.global_step, None if skipped else grad_norm)) is not None:
            self._last = step
            self._record(step)
        control = self.control
        waits = control.should_log or control.should_save or control.should_evaluate or control.should_training_stop
        fault = self._look() if waits or self.steps.are_many else None
        if fault is not None:
            control.should_log, control.should_save, control.should_evaluate = True, False, False
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)
        if fault is not None:
            self.write_log()
            raise fault

    def _look(self) -> BadStep | None:
        """The error for the first bad step since the look before."""
        if self.loss_scale is not None and self.loss_scale < LEAST_LOSS_SCALE and self._last is not None:
            return self._bad(
                self._last,
                f"expected a loss scale of {LEAST_LOSS_SCALE:g} or more, got {self.loss_scale:g}",
                {"loss_scale": self.loss_scale},
            )
        for health in self.steps.look(self.accelerator):
            if (fault := self._fault_of(health)) is not None:
                return self._bad(health.step, fault, {"loss": health.loss, "grad_norm": health.norm})
            for field, spikes in self._spikes.items():
                if (value := getattr(health, field)) is not None:
                    spikes.remember([value])
            if self._unsure is not None and health.step.number > self._unsure:
                self._remove_older()
        return None

    def _fault_of(self, health: Health) -> str | None:
        figures = f"loss {health.loss:.4g}" + ("" if health.norm is None else f", gradient norm {health.norm:.4g}")
        if not health.is_finite:
            return f"expected a finite loss and gradient, got {figures}{self._half_text()}"
        for field, spikes in self._spikes.items():
            value, limit = getattr(health, field), spikes.limit
            if value is not None and limit is not None and value > limit:
                what = {"loss": "loss", "norm": "gradient norm"}[field]
                return f"expected a {what} of at most {limit:.4g} (--spike_factor {spikes.factor:g}), got {figures}"
        return None

    def _half_text(self) -> str:
        if self.accelerator.scaler is None:
            return ""
        return (
            " under fp16 autocast; if the model leaves float16's range, give --bf16 true, or --fp16 false for float32"
        )

    def _bad(self, step: Step, fault: str, figures: dict[str, float | None]) -> BadStep:
        gathered, out = step.gathered(), Path(str(self.args.output_dir))
        as_json = {"step": step.number, "fault": fault, **{name: plain(value) for name, value in figures.items()}}
        end = by_first_process(lambda: stopped_text(self.train_dataset, out, as_json, gathered))
        return BadStep(f"step {step.number}: {fault}; {end}; or lower --learning_rate")

    def _record(self, step: Step) -> None:
        if self._samples is None:
            return
        ranks = [[rows for rows, _ in parts] for parts in step.gathered()]
        if self.is_world_process_zero():
            columns = self.train_dataset.places(in_order(ranks))
            self._samples.add(step.number, list(zip(*(column.tolist() for column in columns), strict=True)))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._require_finite_weights()
        super()._save_checkpoint(model, trial)
        self._unsure = self.state.global_step

    def _remove_older(self) -> None:
        self._unsure = None
        self.rotate_checkpoints()

    def _require_finite_weights(self) -> None:
        """Raise BadStep if the last step left weights that are not finite, on any rank."""
        if self._last is None:
            return
        names, tensors = zip(*chain(self.model.named_parameters(), self.model.named_buffers()), strict=True)
        bad = torch.stack([_not_finite(tensor) for tensor in tensors])
        if not self.accelerator.reduce(bad.sum(), reduction="sum").item():
            return
        found = [name for name, count in zip(names, bad.tolist(), strict=True) if count]
        where = f" in {found[0]}" + (f" and {len(found) - 1} more" if len(found) > 1 else "") if found else ""
        fault = self._bad(self._last, f"expected finite weights after it, got NaN or infinity{where}", {})
        self.write_log()
        raise fault


def _not_finite(tensor: torch.Tensor) -> torch.Tensor:
    """1 if a tensor has a value that is not finite, else 0; of what this rank holds of it."""
    held = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return (~torch.isfinite(held).all()).float()
