"""Embeds rows of a cache in a page, one group after the other, until a budget of bytes is used."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shards.cache import ShardCache
from shards.format.schema import NEGATIVES, Role
from shards.format.scores import Response
from shards.html.assemble import embedded_json
from shards.inspect.packing import pack_row
from shards.progress import progress
from shards.survey.listed import Listed
from shards.teacher.reward import SCALE_QUANTILE
from shards.token_texts import TokenTexts

BASE64 = 4 / 3


@dataclass(slots=True, kw_only=True)
class Embedded:
    """What was embedded so far.

    rows      of each row what lists and filters need, and its text, as JSON values
    blobs     name -> bytes, the values of each row
    texts     token id -> text, of every token that a row has or keeps
    size      bytes of all that in the page
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    size: float = 0.0
    rewards: dict[Role, list[np.ndarray]] = field(default_factory=dict)
    distances: dict[Role, list[np.ndarray]] = field(default_factory=dict)

    def scales(self) -> dict[str, dict[Role, float]]:
        """The |l_dpo - l_negative| of the deepest colour, and the D_t of the thickest line, by negative."""
        return {
            "reward": {role: _scale(parts) for role, parts in self.rewards.items()},
            "distance": {role: _scale(parts) for role, parts in self.distances.items()},
        }


def embed(cache: ShardCache, listed: Listed, groups: Sequence[Sequence[int]], budget_bytes: float) -> Embedded:
    """The first of these groups that fit into a budget; at least one of them."""
    texts = listed.survey.texts
    found = Embedded()
    with progress(None, "embedding rows", total=sum(map(len, groups)), unit="row", brief=True) as bar:
        for group in groups:
            responses = cache.read(group)
            parts = [_part(row, response, listed, cache) for row, response in zip(group, responses, strict=True)]
            new = _new_texts(responses, texts, found)
            added = sum(size for _, _, size in parts) + len(embedded_json(list(map(str, new.values())))) + 8 * len(new)
            if found.rows and found.size + added > budget_bytes:
                break
            found.size += added
            found.texts |= new
            for (light, blob, _), response in zip(parts, responses, strict=True):
                found.rows.append(light)
                found.blobs[f"row-{light['id']}"] = blob
                _add_scales(found, response)
            bar.update(len(group))
    return found


def _part(row: int, response: Response, listed: Listed, cache: ShardCache) -> tuple[dict[str, Any], bytes, float]:
    """(what lists need, the values, bytes of both in the page)."""
    pieces = listed.survey.texts.pieces(response.input_ids)
    light = _light(row, response, pieces) | {"listed": listed.in_response(response)}
    blob = pack_row(response, pieces, cache.plan)
    return light, blob, len(embedded_json(light).encode()) + BASE64 * len(blob) + 70  # 70: the element around it


def _light(row: int, response: Response, pieces: Sequence[str]) -> dict[str, Any]:
    """A row for lists, filters and sorting. sums: by negative, the sum of l_dpo - l_negative over the positions."""
    scores, start = response.scores, response.response_start
    following = {role: logprob_N.astype(np.float64) for role, logprob_N in scores.next_logprob.items()}
    negatives = [role for role in NEGATIVES if role in following]
    return {
        "id": row,
        "name": response.sample_id,
        "pair": response.pair_id,
        "chosen": bool(response.chosen),
        "prompt_tokens": start,
        "tokens": len(response.input_ids),
        "positions": scores.num_positions,
        "prompt": "".join(pieces[:start]),
        "text": "".join(pieces[start:]),
        "sums": {role: float((following["dpo"] - following[role]).sum()) for role in negatives},
        "logprob": {role: float(logprob_N.sum()) for role, logprob_N in following.items()},
        "largest_distance": {role: float(scores.l1_distance[role].max()) for role in negatives},
    }


def _new_texts(responses: Sequence[Response], texts: TokenTexts, found: Embedded) -> dict[int, str]:
    ids = np.unique(np.concatenate([part for r in responses for part in (r.input_ids, r.scores.support_ids)]))
    return {int(i): texts.text(i) for i in ids if int(i) not in found.texts}


def _add_scales(found: Embedded, response: Response) -> None:
    scores = response.scores
    for role, distance_N in scores.l1_distance.items():
        margin_N = scores.next_logprob["dpo"] - scores.next_logprob[role]
        found.rewards.setdefault(role, []).append(np.abs(margin_N))
        found.distances.setdefault(role, []).append(distance_N)


def _scale(parts: Sequence[np.ndarray]) -> float:
    """Never 0, which would colour equal models."""
    return max(float(np.quantile(np.concatenate(parts), SCALE_QUANTILE)), 1e-6)


def special_ids(found: Embedded, texts: TokenTexts) -> Iterator[int]:
    """Those embedded tokens that are special ones of the tokenizer."""
    return (token_id for token_id in found.texts if texts.special(token_id))
