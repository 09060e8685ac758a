"""Run: what a run's folder says about it: its log, its options, and whether it has finished."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from shards import strict_json
from shards.errors import AlignDistilError, CacheDamaged, OptionError
from shards.files import read_regular
from shards.format.manifest import MAX_JSON_BYTES, read_json
from student.log.curves import DRAWN, curves_svg
from student.log.files import RECORD_FILE, RUN_FILE, STATE_FILE, checkpoints_of
from student.log.series import Series, history
from student.recipe import CHANGED
from student.report.plot import plot_run

HASH_CHARACTERS = 12
NOT_OPTIONS = ("files", "weights_only", "models", CHANGED)
"""What the files of a run say beside its options."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of student.train.

    name       what tells it apart from the others that are shown
    step, steps   optimizer steps done, and in all
    finished   whether its training ended by itself
    written    when its log was written last, in seconds since 1970
    figures    name -> the figure over the steps, as it was logged
    options    name -> value as text
    note       what a reader should know about what was read, or empty
    """

    name: str
    step: int
    steps: int
    finished: bool
    written: float
    figures: Mapping[str, Series]
    options: Mapping[str, str]
    note: str = ""

    @classmethod
    def read(cls, folder: str | Path) -> "Run":
        """The run of a folder, finished or not. Raises as `read_run`."""
        return read_run(Path(folder), Path(folder).name)

    def __repr__(self) -> str:
        return f"Run({self.name!r}, {self.status})"

    def _repr_html_(self) -> str:
        """For a notebook: how the run is going, and its main curves."""
        told = "<br>".join(escape(text) for text in (self.status, self.note) if text)
        svg = curves_svg(self.figures)
        image = ""
        if svg is not None:  # as an image, so that its styles are its own
            image = f'<br><img alt="curves" src="data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}">'
        return f"<b>{escape(self.name)}</b><br>{told}{image}"

    def plot(self, names: Sequence[str] = DRAWN) -> Any:
        """A matplotlib figure with a panel for each of these figures over the steps.

        Raises OptionError for a figure that was not logged, and without matplotlib.
        """
        return plot_run(self.name, self.figures, names)

    @property
    def status(self) -> str:
        """Whether it has finished, in words."""
        if self.finished:
            early = "" if self.step >= self.steps else ": stopped early"
            return f"finished, {self.step:,} of {self.steps:,} steps{early}"
        at = datetime.fromtimestamp(self.written).strftime("%Y-%m-%d %H:%M:%S")
        return f"not finished: step {self.step:,} of {self.steps:,}, last written {at}; it goes on, or was stopped"


def read_run(folder: Path, name: str) -> Run:
    """The run of a folder, from its log or its newest checkpoint's.

    Raises OptionError for a folder that is not a run of ours, and CacheDamaged for a log that cannot be read.
    """
    if not folder.is_dir():
        raise OptionError(f"{folder}: expected the folder of a run, found {'a file' if folder.exists() else 'nothing'}")
    file, state, note = _newest_state(folder)
    entries = _entries(state, file)
    return Run(
        name=name,
        step=state["global_step"],
        steps=state["max_steps"],
        finished=any("train_runtime" in entry for entry in entries),
        written=file.stat().st_mtime,
        figures=history(entries),
        options=_options(folder, file.parent) | {"steps": f"{state['max_steps']:,}"},
        note=note,
    )


def _newest_state(folder: Path) -> tuple[Path, dict[str, Any], str]:
    """(file, content, note). A checkpoint that is still being written gives way to the one before it."""
    if (folder / STATE_FILE).is_file():
        return folder / STATE_FILE, _state(folder / STATE_FILE), ""
    faults: list[str] = []
    for checkpoint in checkpoints_of(folder):
        file = checkpoint / STATE_FILE
        try:
            state = _state(file)
        except (CacheDamaged, FileNotFoundError) as exc:
            why = f"expected a log, found no {STATE_FILE}" if isinstance(exc, FileNotFoundError) else exc
            faults.append(f"{checkpoint.name} is left aside: {why}")
        else:
            return file, state, "; ".join(faults)
    if faults:
        raise CacheDamaged(f"{folder}: expected a log, found none that is whole: {'; '.join(faults)}")
    raise OptionError(f"{folder}: expected a run of student.train, found no {STATE_FILE} and no checkpoint")


def _state(file: Path) -> dict[str, Any]:
    """A Trainer's state. Its numbers may be NaN, which strict JSON does not have."""
    try:
        state = strict_json.loads(read_regular(file, MAX_JSON_BYTES), constants=True)
        steps = state["global_step"], state["max_steps"], len(state["log_history"])
    except (ValueError, KeyError, TypeError) as exc:
        what = f"no {exc}" if isinstance(exc, KeyError) else str(exc)
        raise CacheDamaged(f"{file}: expected the log of a run, got {what}") from exc
    if not all(isinstance(number, int) for number in steps):
        raise CacheDamaged(f"{file}: expected numbers of steps, got {steps[0]!r} of {steps[1]!r}")
    return state


def _entries(state: Mapping[str, Any], file: Path) -> list[Mapping[str, Any]]:
    entries = state["log_history"]
    if isinstance(entries, list):
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
                raise CacheDamaged(f"{file}: expected a step in entry {number} of log_history, got {str(entry)[:60]}")
        return entries
    raise CacheDamaged(f"{file}: expected a list in log_history, got {type(entries).__name__}")


def _options(folder: Path, beside: Path) -> dict[str, str]:
    """The options that a run recorded: beside its log, in its folder, in a checkpoint, or with its student."""
    places = (beside / RUN_FILE, folder / RUN_FILE, *(place / RUN_FILE for place in checkpoints_of(folder)))
    file = next((file for file in (*places, folder / RECORD_FILE) if file.is_file()), None)
    if file is None:
        raise OptionError(f"{folder}: expected a run of student.train, found a log but no {RUN_FILE} or {RECORD_FILE}")
    try:
        return dict(sorted(_flat(read_json(file)).items()))
    except AlignDistilError as exc:
        raise CacheDamaged(f"{exc}, where the options of a run should be") from exc


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested options as name.inner -> text."""
    found: dict[str, str] = {}
    for name, value in facts.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        elif prefix or name not in NOT_OPTIONS:
            found[f"{prefix}{name}"] = _text(value)
    return found


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    is_hash = len(text) == 64 and set(text) <= set("0123456789abcdef")
    return text[:HASH_CHARACTERS] if is_hash else text


def differing(runs: list[Run]) -> dict[str, list[str]]:
    """Option -> its value in every run, for those that are not the same in all; `-` where a run does not record it."""
    names = sorted({name for run in runs for name in run.options})
    rows = {name: [run.options.get(name, "-") for run in runs] for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}
