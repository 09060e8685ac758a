"""A cache as one self-contained HTML page: numbers, histograms, verdict, and rows token by token. Pure.

All text from models or data passes through `escape`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np

from shards.cli.trust_text import TABLE, headline, number, shares
from shards.format.statistics import Histogram
from shards.inspect.text import PositionView
from shards.teacher.trust import STRONG, WEAK, Trust
from shards.teacher.verdict import verdict

BARS = 40
CHART_WIDTH, CHART_HEIGHT = 340, 110
AXIS_HEIGHT = 16
CHARTS = {
    "support_count": "K_t: kept tokens",
    "coverage_teacher": "coverage: the teacher's mass on them",
    "l1_distance": "D_t: distance of dpo and negative",
    "strength": f"w_t: strength (weak under {WEAK:g}, strong over {STRONG:g}; logarithmic)",
}
"""The histograms to draw, and their titles."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
pre { background: #f6f6f4; padding: .8rem; overflow-x: auto; font-size: 12px; line-height: 1.4 }
table { border-collapse: collapse; font-size: 13px } td, th { padding: .15rem .6rem; text-align: right }
td.text, th.text { text-align: left } tr { border-bottom: 1px solid #e5e5e0 } .scroll { overflow-x: auto }
.charts { display: flex; flex-wrap: wrap; gap: 1rem 2rem } figure { margin: 0 } figcaption { font-size: 13px }
svg { display: block } rect { fill: #4a7a96 } svg text { font-size: 11px; fill: #555 }
.verdict { border-left: 6px solid; padding: .5rem 1rem; background: #f6f6f4 } .verdict strong { font-size: 1.1rem }
.level0 { border-color: #3a8f5a } .level1 { border-color: #d49a1f } .level2 { border-color: #b8412f }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowView:
    """A row to show: its title, and the first of its `positions` positions."""

    title: str
    positions: int
    views: Sequence[PositionView]


def page(title: str, facts: Sequence[str], trust: Trust | None, sample: str, rows: Sequence[RowView]) -> str:
    """The whole page. facts: preformatted tables of the cache; sample: which responses were measured, or why none
    were."""
    body = [f"<h1>{escape(title)}</h1>"]
    if trust is None:
        body.append(f"<p>Teacher: {escape(sample)}</p>")
    else:
        body += [_verdict(trust, sample), _charts(trust), _numbers(trust)]
        body += [_row(row) for row in rows]
    body += ["<h2>What is in the cache</h2>", *(f"<pre>{escape(text)}</pre>" for text in facts)]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


def _verdict(trust: Trust, sample: str) -> str:
    word, reasons = verdict(trust)
    level = {"good": 0, "usable with care": 1, "not good": 2}[word]
    items = "".join(f"<li>{escape(text)}</li>" for text in reasons)
    return (
        f'<div class="verdict level{level}"><strong>{escape(headline(word, reasons))}</strong>'
        f"<ul>{items}</ul>{escape(str(trust.spec))}; measured on {escape(sample)}, {trust.positions:,} positions</div>"
    )


def _charts(trust: Trust) -> str:
    drawn = "".join(
        f"<figure><figcaption>{escape(text)}</figcaption>{_svg(trust.histograms[name])}</figure>"
        for name, text in CHARTS.items()
    )
    return f'<h2>Distributions over positions</h2><div class="charts">{drawn}</div>'


def _svg(histogram: Histogram) -> str:
    """Bars between the lowest and the highest value; the tallest is as high as the chart and shows its share."""
    counts, low, high = bars(histogram, BARS)
    width = CHART_WIDTH / len(counts)
    heights = np.where(counts > 0, np.maximum(counts / counts.max() * CHART_HEIGHT, 1.0), 0.0)
    rects = "".join(
        f'<rect x="{i * width:.1f}" y="{AXIS_HEIGHT + CHART_HEIGHT - height:.1f}" width="{max(width - 1, 1):.1f}" '
        f'height="{height:.1f}"/>'
        for i, height in enumerate(heights)
        if height
    )
    bottom = CHART_HEIGHT + 2 * AXIS_HEIGHT - 3
    labels = (
        f'<text x="0" y="{bottom}">{low:.4g}</text>'
        f'<text x="{CHART_WIDTH}" y="{bottom}" text-anchor="end">{high:.4g}</text>'
        f'<text x="0" y="{AXIS_HEIGHT - 4}">highest bar {counts.max() / counts.sum():.1%}; '
        f"median {histogram.quantile(0.5):.4g}</text>"
    )
    height = CHART_HEIGHT + 2 * AXIS_HEIGHT
    return f'<svg width="{CHART_WIDTH}" height="{height}" role="img">{rects}{labels}</svg>'


def bars(histogram: Histogram, limit: int) -> tuple[np.ndarray, float, float]:
    """(counts in at most `limit` bars, start of the first, end of the last), over all occupied bins."""
    occupied = np.flatnonzero(histogram.counts)
    first, last = int(occupied[0]), int(occupied[-1]) + 1
    edges = np.unique(np.linspace(first, last, min(limit, last - first) + 1).round().astype(int))
    counts = np.array([histogram.counts[start:stop].sum() for start, stop in pairwise(edges)])
    return counts, histogram.edge(first), histogram.edge(last)


def _numbers(trust: Trust) -> str:
    summaries = {name: trust.histograms[name].summary() for name in TABLE}
    heads = ["", *next(iter(summaries.values())), "what it is"]
    rows = [[name, *map(number, row.values()), TABLE[name]] for name, row in summaries.items()]
    told = [[share, what] for share, what in shares(trust)]
    return f"<h2>Numbers</h2>{_table(heads, rows)}<p></p>{_table(['share of positions', 'where'], told)}"


def _row(row: RowView) -> str:
    heads = ["token", "text", "p_ref", "p*", "D_t", "w_t", "K_t", "best of p*"]
    cells = [
        [
            str(view.index),
            view.text,
            f"{view.p_reference:.4f}",
            "tail" if view.p_teacher is None else f"{view.p_teacher:.4f}",
            f"{view.l1_distance:.4f}",
            f"{view.strength:.3f}",
            str(view.support_count),
            ", ".join(f"{text} {prob:.2f}" for text, prob in view.best),
        ]
        for view in row.views
    ]
    shown = "" if len(row.views) == row.positions else f", the first {len(row.views):,} of {row.positions:,} positions"
    return f"<h2>{escape(row.title)}{shown}</h2>{_table(heads, cells)}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table. Cells are escaped; text columns are left-aligned."""

    def cells(tag: str, texts: Sequence[str]) -> str:
        return "".join(f"<{tag}{_align(head)}>{escape(text)}</{tag}>" for text, head in zip(texts, heads, strict=True))

    lines = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{cells("th", heads)}</tr>{lines}</table></div>'


def _align(head: str) -> str:
    return ' class="text"' if head in ("", "text", "where", "what it is", "best of p*") else ""
