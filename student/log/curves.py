"""The main curves of a run as one small SVG picture, for its model card. Pure; no plotting library."""

from collections.abc import Mapping
from html import escape

import numpy as np

from student.log.figures import Figure, figure_of
from student.log.series import Series, thinned

CURVES_FILE = "curves.svg"
DRAWN = ("loss", "kl_teacher", "expected_reward", "kl_reference")
POINTS = 200
"""Points of a curve; a longer one shows means, with the lowest and highest values around them."""

WIDTH, HEIGHT = 380, 190
LEFT, RIGHT, TOP, BOTTOM = 74, 14, 28, 30
STYLE = """
svg { background: #fff; font: 12px system-ui, sans-serif; fill: #222 }
.axis { stroke: #999; fill: none } .curve { stroke: #0a5bb5; stroke-width: 1.6; fill: none }
.range { fill: #0a5bb5; opacity: .18 } .title { font-weight: 600 }
@media (prefers-color-scheme: dark) { svg { background: #16181c; fill: #ddd } .axis { stroke: #777 }
.curve { stroke: #6cb2ff } .range { fill: #6cb2ff } }
"""


def curves_svg(figures: Mapping[str, Series]) -> str | None:
    """Four panels over the steps; None if no figure has two steps to draw a line between."""
    drawn = {name: thinned(figures[name], POINTS) for name in DRAWN if name in figures}
    drawn = {name: series for name, series in drawn.items() if np.isfinite(series.mean).sum() > 1}
    if not drawn:
        return None
    rows = -(-len(drawn) // 2)
    panels = [
        f'<g transform="translate({place % 2 * WIDTH} {place // 2 * HEIGHT})">{_panel(figure_of(name), series)}</g>'
        for place, (name, series) in enumerate(drawn.items())
    ]
    size = f'width="{2 * WIDTH}" height="{rows * HEIGHT}" viewBox="0 0 {2 * WIDTH} {rows * HEIGHT}"'
    told = "; ".join(_way(figure_of(name), series) for name, series in drawn.items())
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><title>{escape(told)}</title>'
    return f"{head}<style>{STYLE}</style>\n" + "\n".join(panels) + "\n</svg>\n"


def _way(figure: Figure, series: Series) -> str:
    return f"{figure.heading} {figure.text(series.begin)} to {figure.text(series.end)}"


def _panel(figure: Figure, series: Series) -> str:
    """Title, axes with their ends, the range of thinned points, and the curve."""
    there = np.isfinite(series.mean)
    steps, mean = series.steps[there], series.mean[there]
    low, high = float(series.low[there].min()), float(series.high[there].max())
    inner, across = HEIGHT - TOP - BOTTOM, WIDTH - LEFT - RIGHT
    span, first, last = high - low or 1.0, int(steps[0]), int(steps[-1])

    def points(values: np.ndarray, order: slice = slice(None)) -> str:
        x = LEFT + (steps - first) / max(1, last - first) * across
        y = TOP + inner - (values - low) / span * inner
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x[order], y[order], strict=True))

    outline = f"{points(series.high[there])} {points(series.low[there], slice(None, None, -1))}"
    band = "" if series.of_each == 1 else f'<polygon class="range" points="{outline}"/>'
    title = escape(figure.heading + (f", {figure.good} is better" if figure.good else ""))
    bottom = TOP + inner
    return (
        f'<text class="title" x="14" y="{TOP - 11}">{title}</text>'
        f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}"/>'
        f'<text x="{LEFT - 5}" y="{TOP + 9}" text-anchor="end">{figure.text(high)}</text>'
        f'<text x="{LEFT - 5}" y="{bottom}" text-anchor="end">{figure.text(low)}</text>'
        f'<text x="{LEFT}" y="{bottom + 16}">step {first:,}</text>'
        f'<text x="{WIDTH - RIGHT}" y="{bottom + 16}" text-anchor="end">{last:,}</text>'
        f'{band}<polyline class="curve" points="{points(mean)}"/>'
    )
