"""BuildingOptions: every flag of `python -m benchmarks.building`."""

from dataclasses import dataclass
from typing import Literal

from benchmarks.step.options import StepOptions
from shards.cli.command import flag, require_at_least, require_choices
from shards.errors import OptionError


@dataclass(kw_only=True)
class BuildingOptions:
    """Flags of the benchmark. Raises OptionError for values that contradict each other or are out of range."""

    hidden_size: int = flag(512, "of the Llama that all three models are")
    layers: int = flag(8, "of it")
    heads: int = flag(8, "of it; a divisor of --hidden_size")
    vocabulary: int = flag(32_000, "tokens")
    pairs: int = flag(4, "pairs of preference, two sequences each: one batch and one shard")
    sequence_length: int = flag(256, "tokens of a sequence, prompt and response; all are equally long")
    prompt_tokens: int = flag(64, "of which are the prompt's")
    top_k: int = flag(64, "mean number of tokens kept a position")
    dtype: Literal["float32", "float16", "bfloat16"] = flag("float32", "of all models' bodies")
    device: str = flag("auto", "auto, cpu, cuda or cuda:N")
    repeats: int = flag(5, "times that everything is measured, in turn")
    growth: list[float] = flag([], "factors, 0.5 1 2 say, by which every size is multiplied in turn")
    out: str = flag("runs/building", "folder for models, shards and results")

    def __post_init__(self) -> None:
        require_choices(self)
        require_at_least(self, 1, ("pairs", "top_k", "repeats"))
        if any(factor <= 0 for factor in self.growth):
            raise OptionError(f"growth: expected factors over 0, got {' '.join(map(str, self.growth))}")
        _ = self.models

    @property
    def rows(self) -> int:
        return 2 * self.pairs

    @property
    def models(self) -> StepOptions:
        """What the benchmark of the step makes such models and data from. Raises OptionError."""
        names = ("hidden_size", "layers", "heads", "vocabulary", "sequence_length", "prompt_tokens", "top_k", "dtype")
        return StepOptions(**{name: getattr(self, name) for name in names}, rows=self.rows, loader_batches=2)
