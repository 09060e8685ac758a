"""Runs as one self-contained HTML page of curves. Pure, but for reading the page's own scripts."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from shards.html.assemble import assemble, package_text
from student.log.figures import EVALUATION, Figure
from student.log.series import Series, thinned
from student.report.run import Run, differing
from student.report.text import LEFT_OUT, figures_of

STYLES = (("shards.html", "vendor/uPlot.min.css"), (__package__, "html/runs.css"))
SCRIPTS = (
    ("shards.html", "vendor/uPlot.iife.min.js"),
    *((__package__, f"html/{name}.js") for name in ("curves", "frontier", "runs")),
)

MAIN = (
    *("loss", "kl_teacher", "expected_reward", "frontier", "kl_reference", "kl_dpo"),
    *("support_mass", "strength", "learning_rate", "tokens_per_second"),
)
"""The charts of the page, in this order; all others are under "more figures"."""

FRONTIER = ("kl_reference", "expected_reward")
NO_CURVE = ("epoch", "train_loss", "total_flos", "train_runtime", "eval_runtime")

VALUES, MOST, FEWEST = 200_000, 1_500, 50
"""Numbers on the page, about ten bytes each; and the most and fewest points of a curve that this leaves."""


def runs_page(runs: Sequence[Run]) -> str:
    """The page. Curves with too many points for it are thinned, and the page says so."""
    title = f"Run {runs[0].name}" if len(runs) == 1 else f"{len(runs):,} runs"
    texts = [[package_text(package, file) for package, file in files] for files in (STYLES, SCRIPTS)]
    return assemble(title, data=page_data(runs), styles=texts[0], scripts=texts[1])


def page_data(runs: Sequence[Run]) -> dict[str, Any]:
    """What the page's scripts read, as JSON values."""
    figures = figures_of(runs)
    drawn = [figure.name for figure in figures if _is_drawn(figure.name)]
    limit = min(MOST, max(FEWEST, VALUES // (3 * len(runs) * max(1, len(drawn)))))
    curves = [{name: thinned(run.figures[name], limit) for name in drawn if name in run.figures} for run in runs]
    names = {name for run in runs for name in run.options}
    main = [name for name in MAIN if name in drawn or (name == "frontier" and set(FRONTIER) <= set(drawn))]
    evaluation = [name for name in drawn if name.startswith(EVALUATION)]
    return {
        "figures": [_described(figure) for figure in figures],
        "main": main,
        "evaluation": evaluation,
        "more": [name for name in drawn if name not in main and name not in evaluation],
        "frontier": FRONTIER,
        "runs": [_run(run, found) for run, found in zip(runs, curves, strict=True)],
        "thinned": _thinned_text(curves),
        "differing": [[name, *values] for name, values in differing(list(runs)).items()],
        "options": [[name, *(run.options.get(name, "-") for run in runs)] for name in sorted(names)],
        "numbers": list(_numbers(runs, figures)),
    }


def _is_drawn(name: str) -> bool:
    return name not in NO_CURVE and not name.endswith(("_samples_per_second", "_steps_per_second"))


def _described(figure: Figure) -> dict[str, Any]:
    inner = figure.name.removeprefix(EVALUATION)
    return {
        **{part: getattr(figure, part) for part in ("name", "label", "heading", "meaning", "unit", "good")},
        "signed": figure.form.startswith("+"),
        "log": inner.startswith(("loss", "kl_")),
    }


def _run(run: Run, curves: dict[str, Series]) -> dict[str, Any]:
    """A run with its curves. Figures that were logged at the same steps share an axis."""
    axes: dict[bytes, int] = {}
    steps: list[list[int]] = []
    figures = {}
    for name, series in curves.items():
        place = axes.setdefault(series.steps.tobytes(), len(axes))
        if place == len(steps):
            steps.append(series.steps.tolist())
        figures[name] = {"axis": place, "mean": _numbers_of(series.mean)}
        if series.of_each > 1:
            figures[name] |= {"low": _numbers_of(series.low), "high": _numbers_of(series.high)}
    return {"name": run.name, "status": run.status, "note": run.note, "axes": steps, "figures": figures}


def _numbers_of(values: np.ndarray) -> list[float | None]:
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values.tolist()]


def _thinned_text(curves: Iterable[dict[str, Series]]) -> str:
    """What was left out for the size of the page, if anything was."""
    of_each = max((series.of_each for found in curves for series in found.values()), default=1)
    if of_each == 1:
        return ""
    return (
        f"Long curves are thinned: each point is the mean of up to {of_each:,} logged steps, and its band goes from "
        "their lowest to their highest value."
    )


def _numbers(runs: Sequence[Run], figures: Iterable[Figure]) -> Iterator[list[str]]:
    """A row for every figure: its name, then its first and last value in every run."""
    for figure in figures:
        if figure.name not in LEFT_OUT:
            good = f", {figure.good} is better" if figure.good else ""
            yield [f"{figure.heading}{good}", *(_way(run, figure) for run in runs)]


def _way(run: Run, figure: Figure) -> str:
    """The first and the last logged value of a figure."""
    series = run.figures.get(figure.name)
    if series is None:
        return ""
    first = figure.text(series.first)
    return first if len(series.steps) == 1 else f"{first} → {figure.text(series.last)}"
