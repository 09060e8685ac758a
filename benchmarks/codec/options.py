"""CodecOptions: every flag of `python -m benchmarks.codec`."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.fidelity.options import read_trios
from shards.cli.command import flag, require_at_least
from shards.errors import OptionError
from shards.format.schema import Role


@dataclass(kw_only=True)
class CodecOptions:
    """Flags of the benchmark. Raises OptionError for values that contradict each other or are out of range."""

    trios: list[str] = flag(
        [], "name=folder of trios, each with the folders dpo, reverse and reference; default: a small trio made here"
    )
    data: str | None = flag(None, "preference data; goes with --trios")
    distillkit: str | None = flag(None, "a checkout of arcee-ai/DistillKit, whose codec is run too; default: left out")
    rows: int = flag(24, "responses, spread over the data")
    positions: int = flag(300, "response positions, spread over the responses")
    max_length: int = flag(192, "tokens of prompt and response")
    top_k: int = flag(64, "mean number of tokens kept a position")
    vocabulary: int = flag(151_936, "tokens of the large vocabulary, of synthetic scores, where bytes are counted too")
    synthetic_rows: int = flag(32, "responses of 256 tokens, on average, with such scores")
    repeats: int = flag(5, "times that everything is decoded, in turn; medians are reported")
    out: str = flag("runs/codec", "folder for the results")

    def __post_init__(self) -> None:
        if bool(self.trios) != (self.data is not None):
            raise OptionError(f"trios and data: expected both or neither, got {self.trios} and {self.data}")
        require_at_least(self, 1, ("rows", "positions", "top_k", "vocabulary", "synthetic_rows", "repeats"))
        _ = self.folders

    @property
    def folders(self) -> dict[str, dict[Role, Path]]:
        """Name of a trio -> role -> folder."""
        return read_trios(self.trios)
