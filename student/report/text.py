"""Runs as text for a terminal of 100 columns. Pure."""

from collections.abc import Iterator, Sequence

from shards.cli.text import WIDTH
from shards.errors import plain
from student.log.figures import FIGURES, Figure, figure_of
from student.report.run import Run, differing

LABEL_WIDTH, NAME_WIDTH = 47, 7

WAY = "mean of the first tenth of the logged steps -> of the last tenth"

LEFT_OUT = ("epoch", "learning_rate", "total_flos", "loss_scale")
"""Figures whose begin and end say nothing about how a run goes."""


def report_text(runs: Sequence[Run]) -> str:
    """The runs, what differs between them, and the way of every figure."""
    parts = [_runs(runs), _differences(runs), _figures(runs)]
    return "\n\n".join("\n".join(lines) for part in parts if (lines := list(map(plain, part))))


def _runs(runs: Sequence[Run]) -> Iterator[str]:
    for number, run in enumerate(runs, 1):
        yield f"{f'run {number}':<{NAME_WIDTH}} {run.name}"
        yield f"{'':<{NAME_WIDTH}} {run.status}"
        if run.note:
            yield f"{'':<{NAME_WIDTH}} {run.note}"


def _differences(runs: Sequence[Run]) -> Iterator[str]:
    """A line per option that differs, and per run."""
    for option, values in differing(list(runs)).items():
        for number, value in enumerate(values, 1):
            label = option if number == 1 else ""
            yield f"{label:<{LABEL_WIDTH}}{f'run {number}':<{NAME_WIDTH}}{value}"[:WIDTH]


def _figures(runs: Sequence[Run]) -> Iterator[str]:
    """A line per figure and run: begin -> end."""
    yield WAY
    for figure in figures_of(runs):
        if figure.name in LEFT_OUT:
            continue
        label = figure.heading
        if len(label) >= LABEL_WIDTH:
            yield label
            label = ""
        good = f"  ({figure.good} is better)" if figure.good else ""
        for number, run in enumerate(runs, 1):
            if figure.name in run.figures:
                series = run.figures[figure.name]
                way = figure.text(series.begin)
                way += f" -> {figure.text(series.end)}" if len(series.steps) > 1 else ""
                yield f"{label:<{LABEL_WIDTH}}{f'run {number}':<{NAME_WIDTH}}{way:<26}{good}".rstrip()
                label = good = ""


def figures_of(runs: Sequence[Run]) -> list[Figure]:
    """The figures that a run has logged, in the order of FIGURES; evaluations and unknown ones after them."""
    names = {name: None for run in runs for name in run.figures}
    known = [name for name in FIGURES if name in names]
    evaluated = [f"eval_{name}" for name in FIGURES if f"eval_{name}" in names and f"eval_{name}" not in FIGURES]
    rest = [name for name in names if name not in known and name not in evaluated]
    return [figure_of(name) for name in (*known, *evaluated, *rest)]
