"""The report of the check: as text for a terminal of 100 columns, and as JSON. Pure."""

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from precompute.check.agreement import SAME_FLOAT32, Tolerance, disagreements
from precompute.check.sums import Comparison, ErrorSum, LossSums
from shards import TeacherSpec
from shards.cli.text import WIDTH
from shards.format.schema import Role, Values
from shards.teacher.compose import LOW_STRENGTH

LABEL_WIDTH = 23
VALUES: Mapping[Values, str] = {
    "compact": "compact; differences of log-probs count beyond their rounding, those of the teacher whole",
    "float32": "float32",
}
KINDS = {"kept": "log-probs, kept tokens", "next": "log-probs, next tokens", "tail": "log-probs, tails"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What was compared, and the result.

    rows       the rows that were recomputed, out of cache_rows
    values     how the cache stores values
    places     role -> where the model was taken from
    changed    role -> hashes that are not the manifest's, in words; a role without any is not named
    numerics   what differs from the build's numerics, in words
    """

    cache: str
    cache_rows: int
    rows: Sequence[int]
    seed: int
    values: Values
    spec: TeacherSpec
    places: Mapping[Role, str]
    changed: Mapping[Role, Sequence[str]]
    numerics: Sequence[str]
    tolerance: Tolerance
    comparison: Comparison

    @property
    def disagreements(self) -> list[str]:
        return disagreements(self.comparison.scores, self.tolerance, self.changed)

    @property
    def agrees(self) -> bool:
        """Whether every recomputed value is within the tolerance; hashes alone do not decide."""
        return not self.disagreements

    @property
    def positions(self) -> int:
        return next(iter(self.comparison.stages.values())).positions

    def to_json(self) -> dict[str, Any]:
        """JSON values; a number that is undefined or not finite is null."""
        scores, teacher = self.comparison.scores, self.comparison.teacher
        return {
            "agrees": self.agrees,
            "disagreements": self.disagreements,
            "tolerance": asdict(self.tolerance),
            "numerics_differences": list(self.numerics),
            "cache": self.cache,
            "cache_rows": self.cache_rows,
            "rows": list(self.rows),
            "positions": self.positions,
            "seed": self.seed,
            "values": self.values,
            "models": {role: {"place": at, "changed": self.changed.get(role, [])} for role, at in self.places.items()},
            "teacher": self.spec.to_json(),
            "errors": {
                **{kind: _by_role(getattr(scores, kind)) for kind in (*KINDS, "l1_distance")},
                "teacher": _by_role({"kept": teacher.kept, "tail": teacher.tail}),
            },
            "students": {name: _numbers(sums) for name, sums in self.comparison.stages.items()},
        }


def report_text(report: CheckReport) -> str:
    """What was compared, the tables and the verdict."""
    parts = (_head_lines(report), _error_lines(report), _loss_lines(report.comparison.stages), _verdict_lines(report))
    return "\n\n".join("\n".join(lines) for lines in parts)


def _head_lines(report: CheckReport) -> Iterator[str]:
    facts = {
        "cache": f"{report.cache}, {len(report.rows):,} of {report.cache_rows:,} responses (seed {report.seed}), "
        f"{report.positions:,} response tokens",
        "values": VALUES[report.values],
        "teacher": str(report.spec),
        "numerics": "; ".join(report.numerics) or "those of the build",
    }
    for label, text in facts.items():
        yield textwrap.fill(text, WIDTH, initial_indent=f"{label:<10}", subsequent_indent=" " * 10)


def _error_lines(report: CheckReport) -> Iterator[str]:
    scores, teacher, roles = report.comparison.scores, report.comparison.teacher, list(report.places)
    yield _row("cache against models", [f"{role:>20}" for role in roles])
    yield _row("absolute differences", [f"{'mean':>11}{'max':>9}"] * len(roles))
    for kind, label in KINDS.items():
        yield _row(label, [_errors(getattr(scores, kind)[role]) for role in roles])
    yield _row("D_t against", [_errors(e) if (e := scores.l1_distance.get(r)) else " " * 20 for r in roles])
    yield _row("teacher, kept tokens", [_errors(teacher.kept)])
    yield _row("teacher, tails", [_errors(teacher.tail)])


def _loss_lines(stages: Mapping[str, LossSums]) -> Iterator[str]:
    titles = ("dense loss", "sparse loss", "deficit", "angle", "norm ratio", "low: loss", "gradient")
    yield f"{'student':<16}" + "".join(f"{title:>12}" for title in titles)
    for name, sums in stages.items():
        cells = [f"{value / sums.positions:.6f}" for value in (sums.dense_loss, sums.sparse_loss)]
        cells += [_cell(sums.deficit, ".3%"), _cell(sums.angle_degrees, ".4f", "°"), _cell(sums.norm_ratio, ".5f")]
        cells += [_cell(share, ".2%") for share in (sums.low_loss_share, sums.low_gradient_share)]
        yield f"{name:<16}" + "".join(f"{cell:>12}" for cell in cells)
    one = next(iter(stages.values()))
    yield "loss: reverse KL times lambda_t, nats per response token; gradient: over the student's logits;"
    yield f"low: the part of loss and squared gradient at {one.low_positions:,} positions with w_t < {LOW_STRENGTH:g}"


def _verdict_lines(report: CheckReport) -> Iterator[str]:
    allowed = report.tolerance
    yield f"allowed: mean {allowed.mean:g}, max {allowed.largest:g} ({allowed.why})"
    if report.changed and allowed is not SAME_FLOAT32:
        yield (
            f"         mean {SAME_FLOAT32.mean:g}, max {SAME_FLOAT32.largest:g} for {', '.join(report.changed)}, "
            "changed since the build"
        )
    if not report.agrees:
        yield "verdict: the cache is NOT what these models say; outside of what is allowed:"
        yield from (f"  {what}" for what in report.disagreements)
    elif report.changed:
        yield f"verdict: the values agree, though {', '.join(report.changed)} changed since the build"
    else:
        yield "verdict: the cache agrees with its models"


def _row(label: str, cells: Iterable[str]) -> str:
    return f"{label:<{LABEL_WIDTH}}{''.join(cells)}".rstrip()


def _errors(errors: ErrorSum) -> str:
    return f"{errors.mean:11.1e}{errors.largest:9.1e}"


def _cell(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def _by_role(errors: Mapping[Any, ErrorSum]) -> dict[str, dict[str, float | None]]:
    return {name: {"mean": _finite(e.mean), "largest": _finite(e.largest)} for name, e in errors.items()}


def _numbers(sums: LossSums) -> dict[str, float | None]:
    per_position = {name: getattr(sums, name) / sums.positions for name in ("dense_loss", "sparse_loss")}
    names = ("deficit", "angle_degrees", "norm_ratio", "low_loss_share", "low_gradient_share")
    numbers = per_position | {name: getattr(sums, name) for name in names}
    return {name: _finite(value) for name, value in numbers.items()} | {"low_positions": sums.low_positions}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
