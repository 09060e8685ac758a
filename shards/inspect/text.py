"""A cache as text for a terminal of 100 columns. Pure: takes values, returns text."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.cells import cell_len, set_cell_size

from shards.cli.text import WIDTH, labelled
from shards.format.manifest import Manifest
from shards.format.nodes import MIN_STRENGTH
from shards.format.plan import Plan
from shards.format.schema import ANCHORS, FORMAT_NAME, FORMAT_VERSION, NEGATIVES, Pair
from shards.format.scores import Response, segment_starts
from shards.format.statistics import distribution_table
from shards.teacher.compose import Teacher, compose
from shards.teacher.precision import Precision
from shards.teacher.spec import PRESETS, TeacherSpec
from shards.token_texts import TokenTexts

TOKEN_WIDTH = 14
HASH_CHARACTERS = 12
TOP_TOKENS = 3
NO_TEACHER = "none: the cache serves no preset with its defaults"


def plan_table(plan: Plan, provenance: Mapping[str, Any]) -> str:
    """The inputs of a cache: models, tokenizer, data and options, with paths and short hashes."""
    identity = {name: part for name, part in plan.identity.items() if isinstance(part, Mapping)}
    places = provenance.get("models", {})
    models = [
        f"{role:<10} {_hashes(identity.get('models', {}).get(role, {}))}  {places.get(role, '')}" for role in plan.roles
    ]
    tokenizer = f"{plan.vocabulary_size:,} tokens, {_hashes(identity.get('tokenizer', {}))}"
    sources = provenance.get("data", "")  # a list where there are several
    data = f"{sources if isinstance(sources, str) else ', '.join(sources)}  {_hashes(identity.get('data', {}))}"
    skipped = "".join(f"; {count:,} skipped as {reason}" for reason, count in plan.skipped.items())
    threshold = "" if plan.log_threshold is None else f", kept above a log-prob of {plan.log_threshold:.3f}"
    parts = {
        "format": [f"{FORMAT_NAME} {FORMAT_VERSION}, {plan.values} values, build {plan.sha256[:HASH_CHARACTERS]}"],
        "models": models,
        "tokenizer": [tokenizer],
        "data": [data.strip()],
        "options": [_settings(identity.get("options", {})) + threshold],
        "numerics": [_settings(identity.get("numerics", {}))],
        "precision": [str(precision)] if (precision := Precision.of(plan)) else [],
        "rows": [f"{plan.rows:,}, of which {plan.truncated:,} cut at max_length{skipped}"],
        "tokens": [f"{plan.positions:,} response tokens in {len(plan.shards):,} shards"],
    }
    return "\n".join(line for label, texts in parts.items() for line in labelled(label, texts))


def values_table(manifest: Manifest) -> str:
    """Size, and the distributions of support sizes, coverage and D_t."""
    total, positions = sum(entry.bytes for entry in manifest.entries), manifest.plan.positions
    kept = sum(entry.entries for entry in manifest.entries) / positions
    size = f"{total / 2**20:,.1f} MiB, {total / positions:,.1f} bytes per response token, {kept:.1f} tokens kept each"
    return "\n".join([*labelled("size", [size]), "", distribution_table(manifest.statistics)])


def teachers_table(plan: Plan) -> str:
    """Which presets the cache serves, up to which gain or strength; for the others the reason."""
    lines = ["teachers"]
    for name, spec in PRESETS.items():
        lines.append(f"  {name:<12} {spec.pair!s:<20} {_range(plan, spec.strength) or ''}".rstrip())
        reason = _unserved(plan, spec.pair)
        if reason is not None:
            lines[-1] = f"  {name:<12} {spec.pair!s:<20} not served: {reason}"
    named = {spec.pair for spec in PRESETS.values()}
    for pair in (Pair(anchor, negative) for anchor in ANCHORS for negative in NEGATIVES):
        if pair not in named:
            reason = _unserved(plan, pair)
            text = f"not served: {reason}" if reason else "served, with any strength"
            lines.append(f"  {'-':<12} {pair!s:<20} {text}")
    return "\n".join(lines)


def row_facts(response: Response, reward_N: np.ndarray, formula: str) -> str:
    """What a response is, and how it is rewarded."""
    kind = "chosen" if response.chosen else "rejected"
    facts = f"{response.sample_id}, {kind}; {len(response.input_ids)} tokens, {response.scores.num_positions} distilled"
    extremes = f"from {reward_N.min():.4f} to {reward_N.max():.4f} for a token"
    reward = f"{reward_N.sum():.4f} in all, {extremes}; {formula}"
    return "\n".join([*labelled("row", [facts]), *labelled("reward", [reward])])


def row_table(response: Response, spec: TeacherSpec | None, plan: Plan, texts: TokenTexts, reward_N: np.ndarray) -> str:
    """The distilled tokens of a response: rewards, probabilities under reference and teacher, D_t, and the teacher's
    best tokens."""
    if spec is None:
        return "\n".join(labelled("teacher", [NO_TEACHER]))
    head = f"{'token':>6} {'':<{TOKEN_WIDTH}} {'reward':>8} {'p_ref':>7} {'p*':>7} {'D_t':>7} {'w_t':>7} {'K_t':>5}"
    views = position_views(response, compose(response.scores, spec, plan.nodes), spec, texts)
    lines = [_position_line(view, reward) for view, reward in zip(views, reward_N.tolist(), strict=True)]
    return "\n".join([*labelled("teacher", [str(spec)]), "", f"{head}  best of p*", *lines])


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionView:
    """One response position for display: the next token, and the teacher's prediction.

    index         of the next token in the row's input_ids
    p_teacher     None if the next token is not kept
    best          the teacher's most probable kept tokens, with their probabilities
    """

    index: int
    text: str
    p_reference: float
    p_teacher: float | None
    l1_distance: float
    strength: float
    support_count: int
    best: tuple[tuple[str, float], ...]


def position_views(
    response: Response, teacher: Teacher, spec: TeacherSpec, texts: TokenTexts
) -> Iterator[PositionView]:
    """The response positions of a row, in order; the text of every token is printable."""
    scores, pieces = response.scores, texts.pieces(response.input_ids)
    tokens = np.flatnonzero(response.loss_mask)
    starts = segment_starts(scores.support_count)
    for n, (token, start, count) in enumerate(zip(tokens, starts, scores.support_count, strict=True)):
        ids, probs = teacher.support_ids[start : start + count], np.exp(teacher.logprobs[start : start + count])
        next_id = response.input_ids[token]
        best = np.argsort(-probs, kind="stable")[:TOP_TOKENS]
        yield PositionView(
            index=int(token),
            text=_cell(pieces[token]).strip(),
            p_reference=float(np.exp(scores.next_logprob["reference"][n])),
            p_teacher=next((float(prob) for prob in probs[ids == next_id]), None),
            l1_distance=float(scores.l1_distance[spec.negative][n]),
            strength=float(teacher.strength[n]),
            support_count=int(count),
            best=tuple((_cell(texts.text(ids[i])).strip(), float(probs[i])) for i in best),
        )


def _position_line(view: PositionView, reward: float) -> str:
    reached = f"{'tail':>7}" if view.p_teacher is None else f"{view.p_teacher:7.4f}"
    shown = "  ".join(f"{text} {prob:.2f}" for text, prob in view.best)
    line = (
        f"{view.index:>6} {set_cell_size(view.text, TOKEN_WIDTH)} {reward:8.4f} {view.p_reference:7.4f} {reached} "
        f"{view.l1_distance:7.4f} {view.strength:7.3f} {view.support_count:>5}  {shown}"
    )
    return line if cell_len(line) <= WIDTH else set_cell_size(line, WIDTH - 1) + "…"


def _range(plan: Plan, strength: str) -> str:
    if strength == "adaptive":
        return f"w = gain * D_t + {MIN_STRENGTH:g}, gain up to {plan.nodes.gains[-1]:g}"
    return f"w = beta / kl_coef, up to {plan.nodes.strengths[-1]:g}"


def _unserved(plan: Plan, pair: Pair) -> str | None:
    for role in pair:
        if role not in plan.roles:
            return f"built without the model {role}"
    return None if pair in plan.pairs else f"built without --pairs {pair}"


def _hashes(part: Mapping[str, Any]) -> str:
    """The hashes of an identity, shortened: `weights d2a149c119e4`."""
    named = {name.removesuffix("_sha256"): value for name, value in part.items() if name.endswith("_sha256") and value}
    return ", ".join(f"{name} {value[:HASH_CHARACTERS]}" for name, value in named.items())


def _settings(part: Mapping[str, Any]) -> str:
    plain = {
        name: value for name, value in part.items() if not isinstance(value, (list, Mapping)) and value is not None
    }
    return ", ".join(f"{name} {value}" for name, value in plain.items())


def _cell(text: str) -> str:
    """The text of a token, made printable, TOKEN_WIDTH columns wide at most."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return f"{set_cell_size(shown, TOKEN_WIDTH - 1).rstrip()}…" if cell_len(shown) > TOKEN_WIDTH else shown
