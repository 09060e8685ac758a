"""The files that a run leaves in its folder, and the names of its checkpoints. Read without torch."""

import re
from pathlib import Path
from typing import Any

from shards.files import matching, temporary_name
from shards.format.writer import publish

STATE_FILE = "trainer_state.json"
"""transformers' own: the log so far. In the run's folder since its first step, and in every checkpoint."""

RUN_FILE = "distill_run.json"
"""The identity of a run: in its folder, and in a checkpoint's, where it also says whether the checkpoint is whole."""

RECORD_FILE = "aligndistil.json"
"""In a student's folder: teacher and loss, beside the model card, which says the same to people."""


SAMPLES_FILE = "samples.jsonl"
"""With --record_samples: the samples of each optimizer step, in order."""

STOPPED_FILE = "stopped.json"
"""In the folder of a run that stopped at a bad step: which one, and its samples with the loss of each micro-batch."""


def write_state(out: Path, state: Any) -> None:
    """Write the log of a run, a TrainerState, so that its file is whole at any time."""
    temporary = temporary_name(out, STATE_FILE)
    state.save_to_json(str(temporary))
    publish(temporary, out / STATE_FILE)


def checkpoints_of(out: Path) -> list[Path]:
    """The checkpoint folders of a run, newest first."""
    found = [
        (re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in matching(out, "checkpoint-*") if path.is_dir()
    ]
    return [path for _, path in sorted(((int(match[1]), path) for match, path in found if match), reverse=True)]
