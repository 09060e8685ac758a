"""FidelityOptions: every flag of `python -m benchmarks.fidelity`."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.online.trio import make_trio
from shards.cli.command import flag, require_at_least
from shards.errors import OptionError
from shards.format.schema import ROLES, Role
from shards.teacher.spec import PRESETS

TABLES = (
    "teachers",
    "presets",
    "frontier",
    "between",
    "divergences",
    "entropy",
    "dtypes",
    "parameters",
    "student",
    "learned",
    "online",
)


@dataclass(kw_only=True)
class FidelityOptions:
    """Flags of the benchmark. Raises OptionError for values that contradict each other or are out of range."""

    trios: list[str] = flag(
        [], "name=folder of trios, each with the folders dpo, reverse and reference; default: a small trio made here"
    )
    data: str | None = flag(None, "preference data; goes with --trios")
    rows: int = flag(24, "responses, spread over the data")
    positions: int = flag(600, "response positions, spread over the responses")
    frontier_positions: int = flag(300, "of which are measured at every size of the support")
    parameter_rows: int = flag(3, "responses whose gradients over the student's parameters are compared")
    student_rows: int = flag(3, "responses whose gradients in half precision are compared with float32's; 0: none")
    max_length: int = flag(192, "tokens of prompt and response")
    pairs: int = flag(400, "pairs that the learned strength is fitted to and judged by, a half each; 0: none")
    online_steps: int = flag(16, "steps of each run that compares offline with online training; 0: no runs")
    online_learning_rate: float = flag(2e-5, "of these runs")
    online_batch_size: int = flag(8, "responses of a step")
    online_presets: list[str] = flag(list(PRESETS), "teachers of these runs")
    online_length: int = flag(128, "tokens of prompt and response in these runs")
    online_held_out_rows: int = flag(16, "rows that these runs are measured on")
    tables: list[str] = flag(list(TABLES), "what is measured")
    left_out: list[str] = flag([], "table=reason, for the page, of a table that is not measured")
    join: list[str] = flag([], "results.json of earlier runs, whose trios and tables the page has too")
    top_k: int = flag(64, "mean number of tokens kept a position, where one size is measured")
    out: str = flag("runs/fidelity", "folder for results and pictures")
    page: str | None = flag(None, "write the page and its pictures here too: docs/fidelity.md")

    def __post_init__(self) -> None:
        if bool(self.trios) != (self.data is not None):
            raise OptionError(f"trios and data: expected both or neither, got {self.trios} and {self.data}")
        require_at_least(self, 1, ("rows", "positions", "frontier_positions", "parameter_rows", "top_k"))
        require_at_least(self, 0, ("pairs", "online_steps", "student_rows"))
        if wrong := [name for name in (*self.tables, *self.reasons) if name not in TABLES]:
            raise OptionError(f"tables and left_out: expected names of {', '.join(TABLES)}, got {wrong[0]}")
        if both := set(self.tables) & set(self.reasons):
            raise OptionError(f"left_out: expected tables that are not measured, got {min(both)}")
        _ = self.folders

    @property
    def reasons(self) -> dict[str, str]:
        """Table that is left out -> why."""
        return {name: reason for name, _, reason in (item.partition("=") for item in self.left_out)}

    @property
    def folders(self) -> dict[str, dict[Role, Path]]:
        """Name of a trio -> role -> folder."""
        return read_trios(self.trios)


def trios_or_toy(
    trios: dict[str, dict[Role, Path]], data: str | None, out: Path
) -> tuple[dict[str, dict[Role, Path]], str]:
    """The trios and the data that were given, or a small trio of its own, made in OUT, with its held-out pairs."""
    if data is not None:
        return trios, data
    made = make_trio(out / "trio")
    return {"toy": made.models}, str(made.held_out)


def read_trios(items: list[str]) -> dict[str, dict[Role, Path]]:
    """Name of a trio -> role -> folder, from name=folder. Raises OptionError on any other text."""
    found = {}
    for item in items:
        name, separator, folder = item.partition("=")
        if not separator or not name or not folder:
            raise OptionError(f"trios: expected name=folder, got {item!r}")
        found[name] = {role: Path(folder) / role for role in ROLES}
    return found
