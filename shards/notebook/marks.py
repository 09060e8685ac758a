"""token_view: a row as HTML: its text, every token coloured by its reward and underlined by the strength. Pure.

Blue tokens are rewarded, orange ones punished, as on the pages (`shards.html`). The colours are half transparent, so
they suit a light and a dark notebook. Text is escaped once, here; there is no script.
"""

from html import escape
from typing import Any

import numpy as np

from shards.format.scores import segment_starts
from shards.teacher.reward import deepest_reward

BLUE, ORANGE = "43,123,186", "224,127,16"
DEEPEST, THICKEST = 0.75, 3.0
"""Opacity of a token with the `deepest_reward`, and pixels of the line under one with the row's largest strength."""
STYLE = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.8;max-width:60em"


def token_view(row: Any, *, top: int = 0) -> str:
    """The HTML of a `shards.notebook.row.Row`. top: how many alternatives of each model a token's tooltip has."""
    place_of = {int(place): n for n, place in enumerate(row.positions)}
    reward_N = row.reward
    scale = deepest_reward(reward_N) or 1.0
    strength_N = np.zeros(len(reward_N)) if row.teacher is None else row.teacher.strength
    thickest = float(strength_N.max()) or 1.0
    parts = []
    for place, text in enumerate(row.texts):
        n = place_of.get(place)
        if n is None:
            parts.append(f'<span style="opacity:.65">{escape(text)}</span>')
            continue
        opacity = DEEPEST * min(1.0, abs(reward_N[n]) / scale)
        line = THICKEST * strength_N[n] / thickest
        look = (
            f"background:rgba({BLUE if reward_N[n] >= 0 else ORANGE},{opacity:.2f});"
            f"box-shadow:inset 0 -{line:.1f}px 0 rgba(127,127,127,.8)"
        )
        parts.append(f'<span style="{look}" title="{escape(_tooltip(row, n, top))}">{escape(text)}</span>')
    return f'<div style="{STYLE}"><div>{_heading(row)}</div>{"".join(parts)}</div>'


def _heading(row: Any) -> str:
    """What the row is, and what the colours mean."""
    note = row._cache.token_texts.note
    texts = [
        f"row {row.number}: {row.response.sample_id}",
        f"reward {row.reward.sum():+.3f} = sum of beta (l_dpo - l_{row.negative})",
        "" if row.spec is None else f"line: strength w of {row.spec}",
        note or "",
    ]
    blue, orange = (f'<span style="background:rgba({rgb},.6)">{word}</span>' for rgb, word in _LEGEND)
    return f'<small style="opacity:.8">{escape("; ".join(filter(None, texts)))}; {blue} {orange}</small>\n'


_LEGEND = ((BLUE, " rewarded "), (ORANGE, " punished "))


def _tooltip(row: Any, n: int, top: int) -> str:
    """The numbers of a position, and the likeliest tokens of every model among the kept ones."""
    scores, teacher = row.response.scores, row.teacher
    own = row.response.input_ids[row.positions[n]]
    lines = [f"token {int(own)}, reward {row.reward[n]:+.4f}, {int(scores.support_count[n])} kept tokens"]
    lines += [f"D_t {scores.l1_distance[row.negative][n]:.4f}"]
    models = {role: (scores.next_logprob[role][n], scores.logprobs[role]) for role in scores.logprobs}
    if teacher is not None:
        lines[1] += f", w {teacher.strength[n]:.3g}, lambda {teacher.weight[n]:.3g}"
        models["teacher"] = (teacher.next_logprob[n], teacher.logprobs)
    start = int(segment_starts(scores.support_count)[n])
    kept = slice(start, start + int(scores.support_count[n]))
    for name, (following, logprobs_M) in models.items():
        best = np.argsort(-logprobs_M[kept], kind="stable")[:top]
        others = [f"{row.text_of(scores.support_ids[kept][i])!r} {np.exp(logprobs_M[kept][i]):.1%}" for i in best]
        lines.append(f"{name} {np.exp(following):.2%}" + (f"; likeliest {', '.join(others)}" if others else ""))
    return "\n".join(lines)
