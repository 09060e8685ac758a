"""OnlineOptions: every flag of `python -m benchmarks.online`."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.online.trio import Trio
from precompute.build.options import BuildOptions
from shards import TeacherSpec
from shards.cli.command import flag, require_at_least
from shards.errors import OptionError
from shards.teacher.spec import PRESETS


@dataclass(kw_only=True)
class OnlineOptions:
    """Flags of the benchmark. Raises OptionError for values that contradict each other or are out of range."""

    models: list[str] | None = flag(None, "role=folder for dpo, reverse, reference; default: a small trio made here")
    data: str | None = flag(None, "preference data; goes with --models")
    held_out_data: str | None = flag(None, "data to measure on; default: the rows of --data that follow the --rows")
    presets: list[str] = flag(list(PRESETS), "teachers")
    steps: int = flag(16, "optimizer steps of a run")
    batch_size: int = flag(8, "responses of a step")
    learning_rate: float = flag(1e-4, "peak learning rate")
    rows: int = flag(128, "rows of the data that are trained on")
    held_out_rows: int = flag(16, "rows that are measured on")
    max_length: int = flag(128, "tokens of prompt and response; longer responses are cut, longer prompts skipped")
    top_k: int = flag(64, "mean number of tokens kept a position")
    measure_every: int = flag(2, "steps from one measurement to the next; a divisor of --steps")
    out: str = flag("runs/online", "folder for cache, results and picture")

    def __post_init__(self) -> None:
        if (self.models is None) != (self.data is None):
            raise OptionError(f"models and data: expected both or neither, got {self.models} and {self.data}")
        if self.held_out_data is not None and self.data is None:
            raise OptionError(f"held_out_data: expected --models and --data with it, got {self.held_out_data} alone")
        require_at_least(self, 1, ("steps", "batch_size", "rows", "held_out_rows", "measure_every"))
        if self.steps % self.measure_every:
            raise OptionError(f"measure_every: expected a divisor of steps = {self.steps}, got {self.measure_every}")
        if not self.presets:
            raise OptionError(f"presets: expected one or more of {', '.join(PRESETS)}, got none")
        for name in self.presets:
            TeacherSpec.preset(name)
        _ = self.trio

    @property
    def trio(self) -> Trio | None:
        """The models and the data that the flags name; None: a small trio is to be made."""
        if self.models is None or self.data is None:
            return None
        names = BuildOptions(models=self.models, data=self.data).model_names
        if "reverse" not in names:
            raise OptionError(f"models: expected reverse=..., which the reward is measured with, got {self.models}")
        return Trio(
            models={role: Path(name) for role, name in names.items()},
            data=Path(self.data),
            held_out=Path(self.held_out_data or self.data),
        )

    @property
    def first_held_out_row(self) -> int:
        """Row of the held-out file at which what is measured on begins."""
        return self.rows if self.data is not None and self.held_out_data in (None, self.data) else 0
