"""What a page says about the whole cache, as JSON values: identity, teachers, distributions, preferences, sizes."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from shards.cache import ShardCache
from shards.cli.trust_text import headline, sampled, shares
from shards.inspect.bars import bars, signed_bars
from shards.inspect.text import plan_facts, teachers_table, values_table
from shards.preferences.pairs import PreferencePairs, accuracy, find_pairs, preference_margins
from shards.spread import read_scores, sample, spread
from shards.survey.rows import RowFigures
from shards.survey.sizes import ColumnSizes, column_sizes
from shards.survey.survey import Survey
from shards.teacher.precision import Precision
from shards.teacher.reward import formula
from shards.teacher.served import lacks, served_presets
from shards.teacher.spec import PRESETS, TeacherSpec
from shards.teacher.trust import STRONG, WEAK, Trust, assess
from shards.teacher.verdict import WORDS, verdict

SAMPLE_ROWS, OTHER_ROWS = 1_000, 200
"""Responses measured in a larger cache: for the teacher that was asked for, and for every other one."""
PAIRS = 200
"""Pairs on which teachers are asked for their preference; the standard error of a share is 3.5% at most."""
POINTS = 1_500
"""Responses shown as points."""
BARS = 40
CHARTS = {
    "support_count": ("Kept tokens of a position", "K_t, tokens", False),
    "coverage_teacher": ("The teacher's mass on them", "share of its probability", False),
    "l1_distance": ("Distance of dpo and the negative", "D_t, from 0 to 2", False),
    "strength": ("Strength", f"w_t, logarithmic; weak under {WEAK:g}, strong over {STRONG:g}", True),
}
"""The histograms to draw: title, what the axis measures, whether it is logarithmic."""


def around(
    cache: ShardCache, spec: TeacherSpec | None, survey: Survey, provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """All of it. spec: the teacher that was asked for; None if the cache serves none."""
    plan = cache.plan
    trust = None if spec is None else measure(cache, spec, SAMPLE_ROWS)
    return {
        "identity": plan_facts(plan, provenance),
        "tables": [values_table(cache.manifest), teachers_table(plan)],
        "skipped": dict(plan.skipped),
        "cut": plan.truncated,
        "prompt_not_prefix": plan.prompt_not_prefix,
        "rows": len(cache),
        "verdict": None if trust is None else _verdict("the one shown", *trust),
        "teachers": list(_teachers(cache, spec)),
        "distributions": None if trust is None else _distributions(*trust),
        "preferences": _preferences(cache, survey),
        "lengths": _lengths(survey.rows),
        "columns": _columns(column_sizes(cache), plan.positions),
        "survey": {"on": survey.on, "tokens": survey.positions, "reward": formula(survey.negative, survey.beta)},
    }


def measure(cache: ShardCache, spec: TeacherSpec, limit: int) -> tuple[Trust, str]:
    """(the trust measured on `limit` responses, which ones these are)."""
    rows, plan = sample(cache, limit), cache.plan
    trust = assess(read_scores(cache, rows, spec), spec, plan.nodes, plan.vocabulary_size, Precision.of(plan))
    return trust, sampled(len(rows), len(cache), few_shards=cache.mirror is not None)


def _teachers(cache: ShardCache, shown: TeacherSpec | None) -> list[dict[str, Any]]:
    """The verdict on every preset but the shown one, or why the cache does not serve it."""
    found = []
    for name, preset in PRESETS.items():
        lacking = lacks(cache.plan, preset)
        if lacking is not None:
            found.append({"name": name, "spec": str(preset), "lacking": lacking})
        elif preset != shown:
            found.append(_verdict(name, *measure(cache, preset, OTHER_ROWS)))
    return found


def _verdict(name: str, trust: Trust, looked_at: str) -> dict[str, Any]:
    """level: of `WORDS`, from good to bad."""
    word, reasons = verdict(trust)
    return {
        "name": next((preset for preset, spec in PRESETS.items() if spec == trust.spec), name),
        "spec": str(trust.spec),
        "level": WORDS.index(word),
        "headline": headline(word, reasons),
        "reasons": list(reasons),
        "shares": shares(trust),
        "measured": f"{trust.spec}; measured on {looked_at}, {trust.positions:,} positions",
    }


def _distributions(trust: Trust, looked_at: str) -> dict[str, Any]:
    charts = []
    for name, (title, axis, logarithmic) in CHARTS.items():
        counts, edges = bars(trust.histograms[name], BARS)
        summary = trust.histograms[name].summary()
        chart = {"title": title, "axis": axis, "logarithmic": logarithmic, "summary": summary}
        charts.append(chart | {"counts": counts.tolist(), "edges": edges.tolist()})
    return {"on": f"{trust.spec}; {looked_at}, {trust.positions:,} positions", "charts": charts}


def _preferences(cache: ShardCache, survey: Survey) -> dict[str, Any] | None:
    """Margins of the surveyed pairs, and who tells how many of them right; None without pairs."""
    rows = survey.rows
    if not len(rows.margins):
        return None
    counts, edges = signed_bars(rows.margins)
    told = [["contrastive reward", accuracy(rows.margins), len(rows.margins), formula(survey.negative, survey.beta)]]
    for role in (role for role in ("dpo", "reverse") if role in rows.logprob):
        margins = rows.margins_of(rows.implicit_reward(role))
        wanted = "" if role == "dpo" else "; it should prefer the rejected one"
        told.append([role, accuracy(margins), len(margins), f"l_{role} - l_reference{wanted}"])
    margins = rows.margins_of(rows.logprob["reference"])
    told.append(["reference", accuracy(margins), len(margins), "l_reference"])
    served = served_presets(cache.plan)
    sampled_pairs = _few_pairs(cache, rows)
    for name, margins in preference_margins(cache, sampled_pairs, served).items():
        if name in served:
            told.append([f"teacher {name}", accuracy(margins), len(margins), "log p* - l_reference"])
    return {"counts": counts.tolist(), "edges": edges.tolist(), "accuracy": told}


def _few_pairs(cache: ShardCache, rows: RowFigures) -> PreferencePairs:
    """Some of the pairs that were surveyed, evenly spread."""
    pairs = find_pairs(cache)
    surveyed = np.flatnonzero(np.isin(pairs.rows, rows.row).all(axis=1))
    wanted = np.zeros(len(pairs), dtype=bool)
    wanted[surveyed[spread(len(surveyed), PAIRS)]] = True
    return pairs.where(wanted)


def _lengths(rows: RowFigures) -> dict[str, Any]:
    shown = spread(len(rows), POINTS)
    rewards = np.round(rows.reward[shown], 4).tolist()
    points = zip(rows.length[shown].tolist(), rewards, rows.chosen[shown].tolist(), strict=True)
    correlation = rows.length_correlation
    return {"points": list(points), "correlation": None if np.isnan(correlation) else correlation, "rows": len(rows)}


def _columns(sizes: ColumnSizes, positions: int) -> dict[str, Any]:
    """entries: name, share, bytes per response token; the largest first."""
    entries = [[name, share, sizes.bytes_of(name) / positions] for name, share in sizes.shares.items()]
    return {"total_bytes": sizes.total_bytes, "entries": sorted(entries, key=lambda entry: -entry[1])}
