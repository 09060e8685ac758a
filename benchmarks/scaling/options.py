"""ScalingOptions: every flag of `python -m benchmarks.scaling`."""

from dataclasses import dataclass

from shards.cli.command import flag, require_at_least
from shards.errors import OptionError

MEASURES = ("paper", "shuffle", "growth", "reading")
AXES = ("rows", "shards", "ranks")


@dataclass(kw_only=True)
class ScalingOptions:
    """What is assumed, and what is measured. Raises OptionError for values out of range."""

    measure: list[str] = flag(
        ["paper"],
        "paper: the table from the assumptions; shuffle: how good a window is; growth: opening and order of caches "
        "without content; reading: real rows in ever more files",
    )
    # assumptions
    responses: int = flag(10_000_000, "responses of the cache")
    response_tokens: int = flag(1000, "mean tokens of a response")
    prompt_tokens: int = flag(200, "mean tokens of a prompt")
    parameters_billion: float = flag(70, "of each of the three models")
    student_billion: float = flag(8, "parameters of the student")
    gpus: int = flag(64, "of the build, and of the student")
    gpus_per_worker: int = flag(8, "that hold the three models")
    gpus_per_node: int = flag(8, "of a machine")
    peak_tflops: float = flag(989, "of a GPU, dense half precision (H100: 989)")
    mfu: float = flag(0.4, "share of the peak that the build reaches")
    student_mfu: float = flag(0.35, "share of the peak that the student reaches")
    dollars_per_gpu_hour: float = flag(2.5, "price of a GPU")
    bytes_per_token: float = flag(470, "of the cache, a response token (450 to 480 at 64 kept tokens)")
    tokens_per_shard: int = flag(65_536, "response tokens of a shard")
    shuffle_window: int = flag(256, "shards among which a student shuffles")
    global_batch_size: int = flag(128, "responses of an optimizer step")
    # sizes of what is measured
    windows: list[int] = flag([1, 8, 64, 256], "shuffle windows; all is measured too")
    shuffled_shards: list[int] = flag([300, 5000], "shards that are shuffled")
    shard_rows: int = flag(218, "rows of each of them")
    axes: list[str] = flag(list(AXES), "what grows in `growth`")
    rows: list[int] = flag([100_000, 1_000_000, 10_000_000], "rows of caches without content")
    shards: list[int] = flag([300, 5000, 46_000], "shards of caches of a million rows, and of those that are read")
    ranks: list[int] = flag([1, 8, 64], "ranks that share a million rows")
    read_rows: int = flag(46_000, "rows of the caches that are read, of 16 tokens each")
    repeats: int = flag(3, "times that is measured; medians are reported")
    seed: int = flag(0, "of the order")
    out: str = flag("runs/scaling", "folder for results.json, scaling.md and the pictures")

    def __post_init__(self) -> None:
        if not self.measure or not set(self.measure) <= set(MEASURES):
            raise OptionError(
                f"measure: expected some of {', '.join(MEASURES)}, got {', '.join(self.measure) or 'none'}"
            )
        if not self.axes or not set(self.axes) <= set(AXES):
            raise OptionError(f"axes: expected some of {', '.join(AXES)}, got {', '.join(self.axes) or 'none'}")
        require_at_least(
            self, 1, ("responses", "response_tokens", "gpus", "gpus_per_worker", "gpus_per_node", "repeats")
        )
        require_at_least(
            self, 1, ("tokens_per_shard", "global_batch_size", "shuffle_window", "shard_rows", "read_rows")
        )
        for name in ("mfu", "student_mfu"):
            if not 0 < getattr(self, name) <= 1:
                raise OptionError(f"{name}: expected a share above 0, up to 1, got {getattr(self, name)}")
        for name in ("windows", "shuffled_shards", "rows", "shards", "ranks"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise OptionError(f"{name}: expected one or more numbers of 1 or more, got {getattr(self, name)}")
        if max(self.shards) > self.read_rows:
            raise OptionError(f"shards: expected at most the {self.read_rows} of read_rows, got {max(self.shards)}")
