"""Folders of runs as student.train leaves them, made without training."""

import json
from pathlib import Path

FIGURES = {"loss": 0.3, "kl_teacher": 0.2, "kl_reference": 0.01, "expected_reward": 0.02, "support_mass": 0.98}
OPTIONS = {"caches": ["ab" * 32], "teacher": {"gain": 10.0, "beta": 0.1}, "learning_rate": 1e-6, "seed": 0}


def log(steps, **changes):
    """An entry a step; every figure falls from its value to a half. changes: name -> function of the step."""
    entries = []
    for step in range(1, steps + 1):
        values = {name: value * (1 - step / steps / 2) for name, value in FIGURES.items()}
        entries.append(values | {name: make(step) for name, make in changes.items()} | {"step": step})
    return entries


def write_state(folder, entries, steps, *, ended=False):
    folder.mkdir(parents=True, exist_ok=True)
    step = entries[-1]["step"] if entries else 0
    end = [{"step": step, "train_runtime": 12.5, "train_loss": 0.2}] if ended else []
    state = {"global_step": step, "max_steps": steps, "log_history": [*entries, *end]}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


def make_run(folder, *, steps=20, done=None, options=(), **changes):
    """A run that has ended, or with `done` one that was killed after so many steps."""
    folder = Path(folder)
    write_state(folder, log(steps, **changes)[:done], steps, ended=done is None)
    (folder / "distill_run.json").write_text(json.dumps(OPTIONS | dict(options)))
    return folder
