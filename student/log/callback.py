"""RunLog: says the lines of a training, and keeps the log in its folder up to date. Only this file needs torch."""

import time
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerControl, TrainerState

from shards.cli.outside import naming_saves
from shards.format.writer import write_json
from shards.progress import progress
from shards.say import say
from student.log.figures import EVALUATION
from student.log.files import RUN_FILE, write_state
from student.log.lines import evaluation_text, other_text, step_text

WRITE_SECONDS, WRITE_SHARE = 10.0, 0.02
"""The log is written to the folder again after these seconds, or later: writing takes no more than this share."""


class RunLog(TrainerCallback):
    """Says two lines for a logged step in place of transformers' dict, and keeps trainer_state.json up to date.

    Progress is shown as everywhere (`shards.progress`), unless --disable_tqdm. The file is whole at any time, so a run
    that still goes on can be read (`student.report`), and one that was killed too. The dict is in it, and goes where
    --report_to says, as before.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.says = _takes_the_place_of_transformers(trainer)
        self._steps: Any = None
        self._evaluation: Any = None
        self._began = (0.0, 0)  # time, step
        self._named = False
        self._next_write = 0.0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        off, done = self._hides(args, state), state.global_step
        self._steps = progress(None, "training", total=state.max_steps, unit="step", initial=done, disable=off)
        self._began = (time.monotonic(), state.global_step)
        self._named = False

    def on_substep_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._steps.update(round(1 / args.gradient_accumulation_steps, 4))

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._steps.update(state.global_step - self._steps.n)
        if not self._named:  # a run that is refused in its first step leaves nothing
            self.write(args, state)

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        if self._evaluation is None:
            off, batches = self._hides(args, state), len(eval_dataloader)
            self._evaluation = progress(None, "evaluating", total=batches, unit="batch", brief=True, disable=off)
        self._evaluation.update()

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._evaluation is not None:
            self._evaluation.close()
            self._evaluation = None

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.says and "train_runtime" not in logs:
            say(self._text(state, logs))
            if self._steps is not None:
                self._steps.refresh()
        if time.monotonic() >= self._next_write:
            self.write(args, state)

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.write(args, state)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._steps.close()
        self.write(args, state)

    def _hides(self, args: Any, state: TrainerState) -> bool:
        return not self.says or args.disable_tqdm or not state.is_world_process_zero

    def _text(self, state: TrainerState, logs: dict[str, Any]) -> str:
        if "loss" in logs:
            since, done = time.monotonic() - self._began[0], state.global_step - self._began[1]
            left = since / done * (state.max_steps - state.global_step) if done else None
            return step_text(logs, step=state.global_step, steps=state.max_steps, seconds_left=left)
        if f"{EVALUATION}loss" in logs:
            return evaluation_text(logs, step=state.global_step)
        return other_text(logs, step=state.global_step)

    def write(self, args: Any, state: TrainerState) -> None:
        """Write the log whole, then give it its name; and the first time the identity of its run."""
        if not state.is_world_process_zero:
            return
        began, out = time.monotonic(), Path(args.output_dir)
        with naming_saves(str(out)):
            if not self._named:
                write_json(out, RUN_FILE, self.trainer.run_identity())
                self._named = True
            write_state(out, state)
        ended = time.monotonic()
        self._next_write = ended + max(WRITE_SECONDS, (ended - began) / WRITE_SHARE)


def _takes_the_place_of_transformers(trainer: Any) -> bool:
    """Remove transformers' own lines; False in a notebook, whose table of the steps stays."""
    found = [kind for kind in (PrinterCallback, ProgressCallback) if trainer.pop_callback(kind) is not None]
    return bool(found)
