"""GpuOptions: every flag of `python -m benchmarks.gpu`."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.shapes import SHAPES
from shards.cli.command import flag, require_at_least
from shards.errors import OptionError

PART_NAMES = ("tests", "build", "step", "dtypes", "loader")
"""In the order in which they are run: by worth."""


@dataclass(kw_only=True)
class GpuOptions:
    """Flags of the benchmark. Raises OptionError for values that contradict each other or are out of range."""

    parts: list[str] = flag(list(PART_NAMES), "what to measure")
    seconds: int = flag(430, "for all parts together; each has its share, and what the parts before it left over")
    sizes: list[str] = flag(["1.5B", "0.5B", "7B"], "shapes of the build, in this order; the step takes the first")
    trio: str | None = flag(None, "folder of a real trio (dpo, reverse, reference) for the angles of dtypes")
    repeats: int = flag(3, "times that everything is measured, in turn; medians are reported")
    dry_run: bool = flag(False, "every part in tiny shapes on the CPU, to see that it runs; its figures are not shown")
    out: str = flag("runs/gpu", "folder for results.json, gpu.md, logs and temporary caches")
    page: str | None = flag(None, "also write the report to this file, docs/gpu.md say")
    report: bool = flag(False, "measure nothing: write the report again from results.json in --out")

    def __post_init__(self) -> None:
        require_at_least(self, 1, ("seconds", "repeats"))
        for name, legal in (("parts", PART_NAMES), ("sizes", tuple(SHAPES))):
            given = getattr(self, name)
            if wrong := [value for value in given if value not in legal] or ([] if given else ["none"]):
                raise OptionError(f"{name}: expected some of {', '.join(legal)}, got {wrong[0]}")
        if self.trio is not None and not (Path(self.trio) / "reference").is_dir():
            raise OptionError(f"trio: expected a folder with dpo, reverse and reference, got {self.trio}")
        if self.dry_run and self.page is not None:
            raise OptionError("page: expected none with --dry_run, whose figures mean nothing")
