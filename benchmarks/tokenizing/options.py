"""TokenizingOptions: every flag of `python -m benchmarks.tokenizing`."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.tokenizing.layouts import LAYOUTS
from shards.cli.command import flag, require_at_least
from shards.errors import OptionError


@dataclass(kw_only=True)
class TokenizingOptions:
    """Flags of the benchmark. Raises OptionError for values that are out of range."""

    rows: list[int] = flag([1_000, 10_000, 100_000], "numbers of rows; the layouts are measured at each")
    layouts: list[str] = flag(list(LAYOUTS), "layouts of the data")
    words: int = flag(200, "mean words of a response of synthetic text; prompts have half as many")
    tokenizer: str | None = flag(None, "folder of a fast tokenizer with a chat template; default: one made on the spot")
    data: str | None = flag(None, "pairs whose texts are taken, over and over; default: synthetic text")
    repeats: int = flag(3, "times that everything is measured in turn; medians are reported")
    longest_repeated: int = flag(10_000, "numbers of rows above this are measured once")
    built_rows: list[int] = flag([100, 1_000], "rows of builds, with a tiny trio, that are then recognised")
    seed: int = flag(0, "of the synthetic text")
    out: str = flag("runs/tokenizing", "folder for the data and the results")

    def __post_init__(self) -> None:
        require_at_least(self, 1, ("words", "repeats"))
        for name in ("rows", "built_rows"):
            if min(getattr(self, name), default=0) < 1:
                raise OptionError(f"{name}: expected numbers of 1 or more, got {getattr(self, name)}")
        if wrong := [name for name in self.layouts if name not in LAYOUTS]:
            raise OptionError(f"layouts: expected some of {', '.join(LAYOUTS)}, got {wrong[0]}")
        if self.tokenizer is not None and not Path(self.tokenizer).is_dir():
            raise OptionError(f"tokenizer: expected a folder, got {self.tokenizer}")
