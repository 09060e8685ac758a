"""WeightsOptions: every flag of `python -m benchmarks.weights`."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.alignment.frontier import T_975
from benchmarks.alignment.options import BATCH_SIZE
from benchmarks.fidelity.options import read_trios
from benchmarks.weights.rules import Rule, rules
from shards.cli.command import flag, require_at_least
from shards.errors import OptionError
from shards.format.schema import Role

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(kw_only=True)
class WeightsOptions:
    """Flags of the benchmark. Raises OptionError for values that contradict each other or are out of range."""

    dtypes: list[str] = flag(list(DTYPES), "dtypes of the bodies that caches are built from")
    caps: list[float] = flag([10.0, 3.0, 1.0], "largest lambda_t, in units of beta")
    half_caps: list[float] = flag([3.0, 1.0], "the same from bodies in half precision")
    min_strengths: list[float] = flag([0.01, 0.1], "instead of 1e-3; from float32 bodies alone")
    seeds: list[int] = flag([0, 1, 2], "of the known-reward task; each draws its own data and trains its own models")
    known_gains: list[float] = flag([0.25, 0.5, 1.0, 2.0], "gains of its students")
    known_beta: float = flag(1.0, "of its dpo and reverse, chosen by `python -m benchmarks.alignment`")
    known_teacher_rate: float = flag(1e-4, "learning rate of its dpo and reverse, chosen there")
    known_rate: float = flag(1e-3, "learning rate of its students, chosen there")
    texts: int = flag(8000, "written responses that its reference is trained on")
    pairs: int = flag(5760, "its preference pairs; a step takes 32, and each pair is seen once")
    samples_per_prompt: int = flag(16, "responses to each of its 20 held-out prompts, in each of two halves")
    hidden_size: int = flag(64, "of its models")
    trios: list[str] = flag([], "name=folder of trios, each with the folders dpo, reverse and reference")
    data: str | None = flag(None, "preference data to train on; goes with --trios, as --held_out_data does")
    held_out_data: str | None = flag(None, "preference data to measure on")
    trio_seeds: list[int] = flag([0, 1, 2], "orders of the data")
    trio_gains: list[float] = flag([10.0], "gains of the students of trios")
    trio_steps: int = flag(16, "optimizer steps of a student of a trio, 8 responses each")
    trio_rate: float = flag(2e-5, "peak learning rate of the students of trios")
    trio_more_rates: list[float] = flag([3e-5, 5e-5], "of further students without a limit")
    trio_rows: int = flag(128, "rows of --data")
    held_out_rows: int = flag(16, "rows of --held_out_data")
    trio_top_k: int = flag(64, "mean number of tokens kept a position, of a trio's caches")
    max_length: int = flag(128, "tokens of prompt and response of a trio's data")
    out: str = flag("runs/weights", "folder for models, caches and results; what is done is not done again")
    page: str | None = flag(None, "write the page here too: docs/weights.md")

    def __post_init__(self) -> None:
        for name in ("seeds", "trio_seeds"):
            seeds = getattr(self, name)
            if not 1 <= len(seeds) <= max(T_975) + 1 or len(set(seeds)) < len(seeds):
                raise OptionError(f"{name}: expected 1 to {max(T_975) + 1} different ones, got {seeds}")
        if not self.dtypes or not set(self.dtypes) <= set(DTYPES):
            raise OptionError(f"dtypes: expected one or more of {', '.join(DTYPES)}, got {self.dtypes}")
        if len({not self.trios, self.data is None, self.held_out_data is None}) > 1:
            raise OptionError("trios: expected --trios, --data and --held_out_data together, got some of them")
        if self.pairs % (3 * BATCH_SIZE) or self.pairs < 8 * BATCH_SIZE:
            least = f"a multiple of {3 * BATCH_SIZE} of {8 * BATCH_SIZE} or more"
            raise OptionError(f"pairs: expected {least}, got {self.pairs}")
        positive = (
            "texts",
            "samples_per_prompt",
            "hidden_size",
            "trio_steps",
            "trio_rows",
            "held_out_rows",
            "trio_top_k",
        )
        require_at_least(self, 1, positive)
        _ = self.folders

    @property
    def folders(self) -> dict[str, dict[Role, Path]]:
        """Name of a trio -> role -> folder."""
        return read_trios(self.trios)

    def rules_for(self, dtype: str) -> list[Rule]:
        return rules(self.caps, self.min_strengths) if dtype == "float32" else rules(self.half_caps, [])

    def known_identity(self) -> dict[str, object]:
        """What a seed's figures depend on."""
        names = ("caps", "half_caps", "min_strengths", "known_gains", "known_beta",
                 "known_teacher_rate", "known_rate", "texts", "pairs", "samples_per_prompt", "hidden_size")  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def trio_identity(self) -> dict[str, object]:
        """What the figures of a trio depend on, beside its models and data."""
        names = ("caps", "half_caps", "min_strengths", "trio_gains", "trio_steps", "trio_rate", "trio_more_rates",
                 "trio_rows", "held_out_rows", "trio_top_k", "max_length")  # fmt: skip
        return {name: getattr(self, name) for name in names}
