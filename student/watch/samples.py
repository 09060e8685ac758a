"""SampleLog: which samples each optimizer step was trained on, in order, as a line of JSON in the run's folder."""

import json
from pathlib import Path

from shards.cli.outside import naming_saves
from shards.format.writer import write_text
from student.log.files import SAMPLES_FILE


class SampleLog:
    """One line a step: its number, and [cache, row] of each sample in the order of the global batch.

    cache: its number in --shards; row: its row there. A resumed run goes on after its checkpoint's step: lines of
    later steps are removed, because these steps are made again.
    """

    def __init__(self, out: Path) -> None:
        self.path = out / SAMPLES_FILE

    def begin(self, done: int) -> None:
        """Keep the lines of the first `done` steps. Raises OptionError if the folder cannot be written."""
        kept = [line for line in _lines(self.path) if done and json.loads(line)["step"] <= done]
        with naming_saves(str(self.path)):
            write_text(self.path.parent, SAMPLES_FILE, "".join(kept))

    def add(self, step: int, samples: list[tuple[int, int]]) -> None:
        with naming_saves(str(self.path)), self.path.open("a") as file:
            file.write(json.dumps({"step": step, "samples": samples}) + "\n")


def read_samples(out: Path) -> dict[int, list[tuple[int, int]]]:
    """Step -> its samples, (cache, row) each."""
    found = map(json.loads, _lines(out / SAMPLES_FILE))
    return {line["step"]: [(cache, row) for cache, row in line["samples"]] for line in found}


def _lines(path: Path) -> list[str]:
    """The whole lines of a file; a kill may have cut the last one."""
    text = path.read_text() if path.is_file() else ""
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
