"""LoadingOptions: every flag of `python -m benchmarks.loading`."""

from dataclasses import dataclass
from typing import Literal

from shards.cli.command import flag, require_at_least, require_choices
from shards.errors import OptionError
from shards.format.schema import NEGATIVES, REQUIRED_ROLES, ROLES, Pair, Role
from shards.teacher.spec import PRESETS

MEASURES = ("speed", "scale")


@dataclass(kw_only=True)
class LoadingOptions:
    """Flags of the benchmark. Raises OptionError for values that contradict each other or are out of range."""

    rows: int = flag(768, "responses of the cache")
    length: int = flag(256, "mean response tokens; from half of it to one and a half")
    prompt: int = flag(64, "prompt tokens")
    top_k: int = flag(60, "mean number of tokens kept a position")
    max_top_k: int = flag(512, "most tokens kept a position")
    vocabulary: int = flag(32_000, "tokens of the vocabulary")
    roles: list[str] = flag(list(ROLES), "models whose scores are cached")
    values: Literal["compact", "float32"] = flag("compact", "how values are stored")
    rows_per_batch: list[int] = flag([1, 2, 4, 8], "rows of a record batch: a cache of each; the first is the main one")
    levels: list[int] = flag([1, 3, 9, 15], "zstd levels that the main cache's columns are packed with, beside lz4")
    teacher: str = flag("aligndistil", "preset of the teacher that is composed")
    micro_batch_size: int = flag(8, "responses that are read and composed together")
    global_batch_size: int = flag(128, "responses of an optimizer step, among which lengths are sorted")
    repeats: int = flag(5, "times that everything is measured, interleaved; medians are reported")
    measure: list[str] = flag(
        list(MEASURES), "speed: reading and its parts; scale: how costs grow with shards and rows"
    )
    shards: list[int] = flag([3, 30, 300, 5000], "shards that the rows of a cache lie in: a cache of each")
    shard_rows: int = flag(5000, "rows of these caches")
    index_rows: list[int] = flag([100_000, 1_000_000, 10_000_000], "rows of caches that are opened: one of each")
    seed: int = flag(0, "of the scores and of the order")
    out: str = flag("runs/loading", "folder for the caches and the results")

    def __post_init__(self) -> None:
        require_choices(self)
        require_at_least(self, 1, ("rows", "length", "prompt", "top_k", "micro_batch_size", "repeats"))
        for name in ("rows_per_batch", "levels", "shards", "index_rows", "measure"):
            if not getattr(self, name):
                raise OptionError(f"{name}: expected one or more, got none")
        if not set(self.measure) <= set(MEASURES):
            raise OptionError(f"measure: expected some of {', '.join(MEASURES)}, got {', '.join(self.measure)}")
        if max(self.shards) > self.shard_rows:
            raise OptionError(f"shards: expected at most the {self.shard_rows} of shard_rows, got {max(self.shards)}")
        for name in ("rows_per_batch", "levels", "shards", "index_rows"):
            values = getattr(self, name)
            if min(values) < 1:
                raise OptionError(f"{name}: expected numbers of 1 or more, got {values}")
        if not self.top_k <= self.max_top_k <= self.vocabulary:
            raise OptionError(
                f"top_k, max_top_k, vocabulary: expected ascending numbers, got {self.top_k}, {self.max_top_k}, "
                f"{self.vocabulary}"
            )
        if self.global_batch_size % self.micro_batch_size:
            raise OptionError(
                f"global_batch_size: expected a multiple of micro_batch_size, got {self.global_batch_size}"
            )
        if not set(REQUIRED_ROLES) <= set(self.roles) <= set(ROLES):
            raise OptionError(f"roles: expected dpo, reference and maybe reverse, got {', '.join(self.roles)}")
        if self.teacher not in PRESETS or PRESETS[self.teacher].pair not in self.pairs:
            raise OptionError(f"teacher: expected a preset that {', '.join(self.roles)} serve, got {self.teacher!r}")

    @property
    def cached_roles(self) -> tuple[Role, ...]:
        return tuple(role for role in ROLES if role in self.roles)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """What the build serves by default."""
        served = (Pair("dpo", "reverse"), Pair("reference", "reference"))
        return tuple(pair for pair in served if {*pair} <= {*self.roles})

    @property
    def negatives(self) -> tuple[Role, ...]:
        return tuple(role for role in NEGATIVES if role in self.roles)
