"""StepOptions: every flag of `python -m benchmarks.step`."""

from dataclasses import dataclass
from typing import Literal

from shards.cli.command import flag, require_at_least, require_choices
from shards.errors import OptionError


@dataclass(kw_only=True)
class StepOptions:
    """Flags of the benchmark. Raises OptionError for values that contradict each other or are out of range."""

    hidden_size: int = flag(512, "of the Llama that all models are")
    layers: int = flag(8, "of it")
    heads: int = flag(8, "of it; a divisor of --hidden_size")
    vocabulary: int = flag(32_000, "tokens")
    rows: int = flag(4, "sequences of a step")
    sequence_length: int = flag(256, "tokens of a sequence, prompt and response; all are equally long")
    prompt_tokens: int = flag(
        24, "of which are the prompt's; dense fine-tuning has logits there too, a sparse step not"
    )
    top_k: int = flag(64, "mean number of tokens kept a position")
    chunk_positions: int = flag(256, "response positions whose logits exist at a time, in the sparse step")
    dtype: Literal["float32", "float16", "bfloat16"] = flag("float32", "of all models' weights")
    device: str = flag("auto", "auto, cpu, cuda or cuda:N")
    repeats: int = flag(7, "times that each step is measured, in turn with the others")
    loader_batches: int = flag(12, "batches that are drawn from the loader, each followed by a step")
    growth: list[float] = flag(
        [],
        "factors, 0.25 1 4 say, by which every size is multiplied in turn, the others left as they are",
    )
    out: str = flag("runs/step", "folder for models, cache and results")

    def __post_init__(self) -> None:
        require_choices(self)
        names = ("hidden_size", "layers", "heads", "rows", "prompt_tokens", "top_k", "chunk_positions", "repeats")
        require_at_least(self, 1, names)
        if self.loader_batches < 2:
            raise OptionError(
                f"loader_batches: expected 2 or more (the first is not counted), got {self.loader_batches}"
            )
        if self.hidden_size % self.heads:
            raise OptionError(f"heads: expected a divisor of hidden_size = {self.hidden_size}, got {self.heads}")
        if self.sequence_length < self.prompt_tokens + 2:
            raise OptionError(
                f"sequence_length: expected prompt_tokens + 2 = {self.prompt_tokens + 2} or more, a word and the end, "
                f"got {self.sequence_length}"
            )
        if any(factor <= 0 for factor in self.growth):
            raise OptionError(f"growth: expected factors over 0, got {' '.join(map(str, self.growth))}")
        if self.vocabulary < max(self.top_k, 8):
            raise OptionError(f"vocabulary: expected top_k = {self.top_k} and 8 or more, got {self.vocabulary}")

    @property
    def response_tokens(self) -> int:
        """Of a sequence, with its end."""
        return self.sequence_length - self.prompt_tokens
