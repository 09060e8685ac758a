"""AlignmentOptions: every flag of `python -m benchmarks.alignment`."""

from dataclasses import dataclass

from benchmarks.alignment.frontier import T_975
from precompute.models.roles import parse_models
from shards.cli.command import flag, require_at_least
from shards.errors import OptionError
from shards.format.schema import ROLES

BATCH_SIZE = 32
TUNING_SEED = 100


@dataclass(kw_only=True)
class AlignmentOptions:
    """Flags of the benchmark. Raises OptionError for values that are out of range."""

    seeds: list[int] = flag([0, 1, 2, 3, 4], "each draws its own data and trains its own reference")
    texts: int = flag(8000, "written responses that a reference is trained on")
    pairs: int = flag(5760, "preference pairs; a step takes 32, and each pair is seen once")
    few_pairs: int = flag(1440, "the first of them, with which everything but rollouts is done once more")
    held_out_pairs: int = flag(500, "about dishes that no training sees, to judge the teachers by")
    samples_per_prompt: int = flag(16, "responses to each of 20 held-out prompts, in each of two halves")
    learning_rates: list[float] = flag([3e-5, 1e-4, 3e-4, 1e-3], "of which every method gets its best")
    hidden_size: int = flag(64, "of all models")
    models: list[str] = flag(
        [], "role=folder of a trio: the protocol once more on real pairs, under the contrast's reward"
    )
    data: str | None = flag(None, "preference pairs to train on; goes with --models, as --held_out does")
    held_out: str | None = flag(None, "preference pairs to judge by")
    real_seeds: list[int] = flag([0, 1, 2], "each draws its own pairs of --data")
    real_pairs: int = flag(192, "pairs that each is trained on, 8 a step")
    real_held_out_pairs: int = flag(48, "the first of --held_out")
    real_length: int = flag(128, "tokens of prompt and response, where real rows are cut")
    real_learning_rates: list[float] = flag([1e-4, 3e-4], "as --learning_rates, on real pairs")
    workers: int = flag(1, "processes of one thread each; a seed is the work of one")
    out: str = flag("runs/alignment", "folder for models, caches, results and pictures; finished seeds stay")
    page: str | None = flag(None, "write the page and its pictures here too: docs/results.md")

    def __post_init__(self) -> None:
        if not 1 <= len(self.seeds) <= max(T_975) + 1 or len(set(self.seeds)) < len(self.seeds):
            raise OptionError(f"seeds: expected 1 to {max(T_975) + 1} different ones, got {self.seeds}")
        if TUNING_SEED in self.seeds:
            raise OptionError(f"seeds: expected none of {TUNING_SEED}, by which learning rates are chosen")
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise OptionError(f"learning_rates: expected one or more over 0, got {self.learning_rates}")
        for name, least in (
            ("texts", BATCH_SIZE),
            ("pairs", 8 * BATCH_SIZE),
            ("few_pairs", 8 * BATCH_SIZE),
            ("held_out_pairs", 1),
            ("real_pairs", 16),
            ("real_length", 8),
        ):
            if getattr(self, name) < least:
                raise OptionError(f"{name}: expected {least} or more, got {getattr(self, name)}")
        require_at_least(self, 1, ("samples_per_prompt", "hidden_size", "workers", "real_held_out_pairs"))
        for name in ("pairs", "few_pairs"):
            if getattr(self, name) % (3 * BATCH_SIZE):
                raise OptionError(
                    f"{name}: expected a multiple of {3 * BATCH_SIZE}, for whole steps, got {getattr(self, name)}"
                )
        if len({not self.models, self.data is None, self.held_out is None}) > 1:
            raise OptionError("models: expected --models, --data and --held_out together, got some of them")
        if self.models and set(parse_models(self.models)) != set(ROLES):
            raise OptionError(f"models: expected a folder for each of {', '.join(ROLES)}, got {self.models}")
        if self.few_pairs > self.pairs:
            raise OptionError(f"few_pairs: expected no more than the {self.pairs} pairs, got {self.few_pairs}")

    @property
    def steps(self) -> int:
        """Optimizer steps of every training."""
        return self.pairs // BATCH_SIZE

    @property
    def judged_steps(self) -> tuple[int, ...]:
        return tuple(self.steps // part for part in (8, 4, 2, 1))

    def identity(self) -> dict[str, object]:
        """What a seed's figures depend on."""
        names = ("texts", "pairs", "few_pairs", "held_out_pairs", "samples_per_prompt", "learning_rates", "hidden_size")
        return {name: getattr(self, name) for name in names}

    def real_identity(self) -> dict[str, object]:
        """What the figures on real pairs depend on."""
        names = ("real_pairs", "real_held_out_pairs", "real_length", "real_learning_rates")
        return {name: getattr(self, name) for name in names}
