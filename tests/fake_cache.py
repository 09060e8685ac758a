"""A small valid cache of random log-probs, made without models, for tests of the format and of its readers."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from precompute.scoring.support import SupportRule, summarise
from shards.format import writer
from shards.format.encoding.seal import sealed
from shards.format.finishing import Findings, finished
from shards.format.index import RowIndex
from shards.format.manifest import PLAN_FILE, PROVENANCE_FILE, TOKENIZER_FILE, VOCABULARY_FILE
from shards.format.nodes import StrengthNodes
from shards.format.plan import Plan, ShardPlan, json_sha256
from shards.format.schema import ROLES, Pair, Role, Values
from shards.format.scores import Response
from shards.format.writer import (
    json_bytes,
    plan_bytes,
    write_bytes,
    write_index,
    write_json,
    write_manifest,
    write_shard,
    write_text,
)

DEFAULT_PAIRS = (Pair("dpo", "reverse"), Pair("reference", "reference"))
Dense = Mapping[Role, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeCache:
    """A written cache, and its content. `dense`: for each row, role -> full log-probs (N, V), float64."""

    folder: Path
    plan: Plan
    vocabulary: dict[str, int]
    responses: list[Response]
    dense: list[Dense]


def make_cache(
    folder: Path,
    *,
    vocabulary_size: int = 24,
    pairs: int = 5,
    response_tokens: int = 8,
    top_k: int | None = None,
    roles: Sequence[Role] = ROLES,
    served: Sequence[Pair] | None = None,
    nodes: StrengthNodes | None = None,
    values: Values = "float32",
    rows_per_batch: int = 2,
    rows_per_shard: int = 4,
    seed: int = 0,
) -> FakeCache:
    """Write a cache of `pairs` chosen and `pairs` rejected responses in shards of `rows_per_shard` rows.

    A response has up to `response_tokens` tokens, and half as many at least. With top_k exactly so many tokens are
    kept; without, every token above one threshold, from one to all of them.
    """
    nodes = nodes or StrengthNodes()
    served = served or tuple(pair for pair in DEFAULT_PAIRS if pair.negative in roles)
    threshold = None if top_k else float(np.log(0.4 / vocabulary_size))
    rule = SupportRule(lowest=1, highest=top_k or vocabulary_size, log_threshold=threshold)
    generator = np.random.default_rng(seed)
    rows = [
        _response(generator, i, response_tokens, vocabulary_size, roles, rule, served, nodes) for i in range(2 * pairs)
    ]
    responses, dense = [row[0] for row in rows], [row[1] for row in rows]
    vocabulary = {_token(i): i for i in range(vocabulary_size)}
    plan = Plan(
        identity=_identity(roles, vocabulary, max(64, response_tokens + 4)),
        roles=tuple(roles),
        pairs=tuple(served),
        nodes=nodes,
        vocabulary_size=vocabulary_size,
        values=values,
        rows_per_batch=rows_per_batch,
        log_threshold=threshold,
        skipped={"empty": 1, "overlong": 0},
        truncated=2,
        prompt_not_prefix=0,
        index_sha256="",  # `write_cache` fills it in
        shards=plan_shards(responses, rows_per_shard),
    )
    folder.mkdir(parents=True, exist_ok=True)
    plan = write_cache(folder, plan, vocabulary, responses)
    return FakeCache(folder=folder, plan=plan, vocabulary=vocabulary, responses=responses, dense=dense)


def plan_shards(responses: Sequence[Response], rows_per_shard: int) -> tuple[ShardPlan, ...]:
    starts = range(0, len(responses), rows_per_shard)
    parts = [responses[start : start + rows_per_shard] for start in starts]
    return tuple(
        ShardPlan(
            file=f"part-{i:05d}.arrow",
            first_row=i * rows_per_shard,
            rows=len(part),
            positions=sum(int(response.loss_mask.sum()) for response in part),
        )
        for i, part in enumerate(parts)
    )


def index_of(responses: Sequence[Response]) -> RowIndex:
    return RowIndex(
        pair_id=np.array([response.pair_id for response in responses], np.int64),
        chosen=np.array([response.chosen for response in responses], bool),
        num_tokens=np.array([len(response.input_ids) for response in responses], np.int32),
        num_positions=np.array([len(response.scores.support_count) for response in responses], np.int32),
    )


def write_cache(
    folder: Path,
    plan: Plan,
    vocabulary: Mapping[str, int],
    responses: Sequence[Response],
    tokenizer: str | None = None,
    indexed: Sequence[Response] | None = None,
) -> Plan:
    """Write all files of a cache, with an index, checksums and statistics that fit any responses.

    tokenizer: the content of tokenizer.json; None: a cache without one. indexed: what the index is of, if of others.

    Returns the plan that names this index.
    """
    if (recorded := plan.identity.get("tokenizer", {})) is not None:
        recorded = {**recorded, "vocabulary_sha256": json_sha256(vocabulary)}
    plan = replace(plan, identity={**plan.identity, "tokenizer": recorded})
    plan = replace(plan, index_sha256=write_index(folder, index_of(indexed or responses)))
    write_json(folder, VOCABULARY_FILE, vocabulary)
    if tokenizer is not None:
        plan = replace(plan, tokenizer_sha256=hashlib.sha256(tokenizer.encode()).hexdigest())
        write_text(folder, TOKENIZER_FILE, tokenizer)
    places = {role: f"/models/{role}" for role in plan.roles}
    write_bytes(folder, PROVENANCE_FILE, sealed(json_bytes({"models": places, "data": "preferences.jsonl"})))
    write_bytes(folder, PLAN_FILE, plan_bytes(plan))
    with unchecked():
        for shard in plan.shards:
            write_shard(folder, shard, plan, responses[shard.first_row : shard.first_row + shard.rows])
    finish_cache(folder, plan)
    return plan


def unchecked() -> AbstractContextManager[object]:
    """The writer writes any values."""
    return mock.patch.object(writer, "require_sound", lambda *given: None)


def finish_cache(folder: Path, plan: Plan) -> None:
    """The last step of a build: the table of the shards and the statistics, from the files themselves."""
    findings = Findings.nothing(plan)
    for number in range(len(plan.shards)):
        findings.read_back(folder, plan, number)
    write_manifest(folder, finished(folder, plan, [findings]))


def rewrite(
    fake: FakeCache, folder: Path, row: int, change: Callable[[Response], Response], *, index: bool = False
) -> None:
    """Write the cache again into `folder`, complete and with correct checksums, with one row changed.

    index: in the index too, not only in its shard.
    """
    folder.mkdir(parents=True, exist_ok=True)
    responses = list(fake.responses)
    responses[row] = change(responses[row])
    write_cache(folder, fake.plan, fake.vocabulary, responses, indexed=responses if index else fake.responses)


def with_scores(response: Response, **changed: Any) -> Response:
    return replace(response, scores=replace(response.scores, **changed))


def flat(response: Response) -> dict[str, Any]:
    """Every value of a response, named by its place."""
    scores = response.scores
    found = {name: getattr(response, name) for name in Response.__slots__ if name != "scores"}
    found |= {"support_count": scores.support_count, "support_ids": scores.support_ids}
    for name in ("logprobs", "next_logprob", "tail_logprob", "l1_distance", "tail_logpartition"):
        found |= {f"{name} {key}": value for key, value in getattr(scores, name).items()}
    return found


def random_logprobs(
    generator: np.random.Generator, positions: int, vocabulary_size: int, roles: Sequence[Role] = ROLES
) -> dict[Role, np.ndarray]:
    """Log-probs (positions, V), float64: sharp and flat positions, and roles that differ by a little or a lot."""
    sharpness_N1 = generator.choice([0.1, 1.0, 4.0], size=(positions, 1))
    shift_N1 = generator.choice([0.01, 0.3, 1.0], size=(positions, 1))
    base_NV = sharpness_N1 * generator.standard_normal((positions, vocabulary_size))
    logits = {role: base_NV + shift_N1 * generator.standard_normal(base_NV.shape) for role in roles}
    return {role: torch.from_numpy(logits_NV).log_softmax(-1).numpy() for role, logits_NV in logits.items()}


def _response(
    generator: np.random.Generator,
    row: int,
    longest: int,
    vocabulary_size: int,
    roles: Sequence[Role],
    rule: SupportRule,
    served: Sequence[Pair],
    nodes: StrengthNodes,
) -> tuple[Response, Dense]:
    start, length = int(generator.integers(1, 5)), int(generator.integers(longest // 2, longest + 1))
    input_ids = generator.integers(0, vocabulary_size, start + length).astype(np.int32)
    mask = np.arange(start + length) >= start
    mask[start + 1] = row % 3 != 0  # a token of a tool's result
    positions = int(mask.sum())
    dense = random_logprobs(generator, positions, vocabulary_size, roles)
    stored = {role: torch.from_numpy(values).float() for role, values in dense.items()}
    next_ids = torch.from_numpy(input_ids[mask]).long()
    kind = "rejected" if row % 2 else "chosen"
    response = Response(
        sample_id=f"{row // 2}/{kind}",
        pair_id=row // 2,
        chosen=kind == "chosen",
        response_start=start,
        input_ids=input_ids,
        loss_mask=mask,
        scores=summarise(stored, next_ids, rule=rule, pairs=served, nodes=nodes),
    )
    return response, dense


def _identity(roles: Sequence[Role], vocabulary: Mapping[str, int], max_length: int) -> dict[str, Any]:
    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    return {
        "models": {
            role: {"weights_sha256": digest(role), "config_sha256": digest("config"), "hub_commit": None}
            for role in roles
        },
        "tokenizer": {
            "vocabulary_sha256": json_sha256(vocabulary),
            "chat_template_sha256": None,
        },
        "data": {"rows_sha256": digest("rows"), "tokens_sha256": digest("tokens")},
        "options": {"support": "adaptive", "top_k": 8, "max_length": max_length, "responses": "both"},
        "numerics": {"dtype": "float32", "device": "cpu", "versions": {"torch": "2"}},
    }


def _token(token_id: int) -> str:
    return ["Ġthe", "\n", "é", "<s>"][token_id] if token_id < 4 else f"word{token_id}"
