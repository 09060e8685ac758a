"""The page of a cache: one self-contained HTML file of its rows, token by token, and of what the cache is."""

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from shards.cache import ShardCache
from shards.format.nodes import MIN_STRENGTH
from shards.html.assemble import assemble, embedded_json, package_text
from shards.inspect.choose import Choice, groups
from shards.inspect.embed import Embedded, embed, special_ids
from shards.survey.listed import Listed
from shards.teacher.spec import PRESETS, TeacherSpec
from shards.token_texts import TokenTexts

SCRIPTS = (
    *("values", "compose", "teacher", "rows", "filters", "text", "pair", "panel", "controls", "reader"),
    *("tops", "charts", "figures", "about"),
)
"""The page's scripts, in order; a section stands where its script is."""
STYLES = ("inspect", "around")
PAGE_MB = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page and, for a message, how many of the asked and of all responses it has."""

    html: str
    rows: int
    asked: int
    total: int

    def __str__(self) -> str:
        size = f"{len(self.html.encode()) / 1e6:.1f} MB with {self.rows:,} of {self.total:,} responses"
        return size if self.rows == self.asked else f"{size}; {self.asked:,} do not fit, --page_mb allows more"


def page(
    cache: ShardCache,
    spec: TeacherSpec | None,
    choice: Choice,
    page_mb: float,
    listed: Listed,
    about: Mapping[str, Any],
) -> Page:
    """The page of a finished cache, of page_mb million bytes or less if one pair of responses fits.

    spec: the teacher to begin with; None: a teacher of the first pair that the cache serves. listed: tokens and words
    of the whole cache. about: JSON values for the sections about the whole cache.
    """
    texts, about = listed.survey.texts, {**about, "listed": listed.to_json()}
    empty = _assembled(cache, spec, texts, Embedded(), about)
    budget_bytes = page_mb * 1e6 - len(empty.encode())
    found = embed(cache, listed, groups(cache, choice, budget_bytes), budget_bytes)
    asked = min(len(cache), choice.sample) if choice.rows is None else len(choice.rows)
    html = _assembled(cache, spec, texts, found, about)
    return Page(html=html, rows=len(found.rows), asked=max(asked, len(found.rows)), total=len(cache))


def _assembled(
    cache: ShardCache, spec: TeacherSpec | None, texts: TokenTexts, found: Embedded, about: Mapping[str, Any]
) -> str:
    plan = cache.plan
    data = {
        "name": cache.name,
        "note": texts.note,
        "roles": plan.roles,
        "pairs": list(map(str, plan.pairs)),
        "nodes": {"gains": plan.nodes.gains, "strengths": plan.nodes.strengths},
        "vocabulary_size": plan.vocabulary_size,
        "teacher": asdict(spec or _any_teacher(cache)),
        "presets": {name: asdict(preset) for name, preset in PRESETS.items()},
        "special": list(special_ids(found, texts)),
        "scale": found.scales(),
        "total": len(cache),
        "rows": found.rows,
        "about": about,
    }
    tokens = embedded_json({str(token_id): text for token_id, text in found.texts.items()})
    return assemble(
        f"Cache {cache.name}",
        data=data,
        scripts=[package_text("shards.inspect", f"web/{name}.js") for name in SCRIPTS],
        styles=[package_text("shards.inspect", f"web/{name}.css") for name in STYLES],
        blobs=found.blobs | {"tokens": zlib.compress(tokens.encode(), 9)},
    )


def _any_teacher(cache: ShardCache) -> TeacherSpec:
    """A teacher that the cache can give, where it serves none of the named ones."""
    pair, nodes = cache.plan.pairs[0], cache.plan.nodes
    spec = TeacherSpec(anchor=pair.anchor, negative=pair.negative)
    return replace(spec, gain=min(spec.gain, nodes.gains[-1]), min_strength=MIN_STRENGTH)
