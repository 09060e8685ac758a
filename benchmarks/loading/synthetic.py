"""A synthetic cache, made without models: scores that look like a language model's, as far as reading can tell.

Probabilities at a position fall as rank^-a, with a lognormal scatter. a varies from position to position, so that with
one threshold for all positions some keep one token and others hundreds. dpo and reverse are the reference moved by
noise, whose size also varies. The kept ids are drawn so that low ones are common. The rest of the vocabulary is not
drawn: its mass is what the power law leaves, and its log-ratios are assumed normal, so that tail partitions are a
parabola in the strength. The result passes `python -m shards.verify`.

Dimensions: N positions of a response, M kept tokens of them, A exponents, V vocabulary, J strength nodes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.loading.options import LoadingOptions
from shards.format.finishing import Findings, finished
from shards.format.index import RowIndex
from shards.format.manifest import PLAN_FILE, VOCABULARY_FILE
from shards.format.nodes import StrengthNodes
from shards.format.plan import Plan, ShardPlan, json_sha256
from shards.format.schema import Role
from shards.format.scores import Response, Scores, segment_starts
from shards.format.writer import plan_bytes, write_bytes, write_index, write_json, write_manifest, write_shard

EXPONENTS = np.linspace(1.05, 3.5, 32)
"""Exponents of the power laws: entropies from five nats to a third of one."""
SCATTER = 0.5
"""Standard deviation of a log-prob around its power law, nats."""
TOKENS_PER_SHARD = 65_536
NODES = StrengthNodes()


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLaws:
    """For each exponent: how many ranks are kept, and the log of the normaliser over all V ranks, (A,)."""

    kept: np.ndarray
    log_total: np.ndarray


def power_laws(options: LoadingOptions) -> PowerLaws:
    """One threshold for all exponents, such that top_k ranks are kept on average."""
    rank_V = np.log(np.arange(1, options.vocabulary + 1))
    log_total_A = np.log(np.exp(-EXPONENTS[:, None] * rank_V).sum(axis=1))

    def kept_at(log_threshold: float) -> np.ndarray:
        ranks_A = np.exp(-(log_threshold + log_total_A) / EXPONENTS)  # rank at which a log-prob equals the threshold
        return np.clip(ranks_A.astype(np.int64), 1, options.max_top_k)

    low, high = -30.0, 0.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if kept_at(middle).mean() > options.top_k else (low, middle)
    return PowerLaws(kept=kept_at(high), log_total=log_total_A)


def make_responses(options: LoadingOptions) -> Iterator[Response]:
    generator, laws = np.random.default_rng(options.seed), power_laws(options)
    for row in range(options.rows):
        yield make_response(row, options, laws, generator)


def make_response(row: int, options: LoadingOptions, laws: PowerLaws, generator: np.random.Generator) -> Response:
    low, high = max(1, options.length // 2), max(1, options.length * 3 // 2)
    size = int(generator.integers(low, high + 1))
    scores, next_ids_N = make_scores(size, options, laws, generator)
    prompt = generator.integers(0, options.vocabulary, options.prompt)
    return Response(
        sample_id=f"{row}/chosen",
        pair_id=row,
        chosen=True,
        response_start=options.prompt,
        input_ids=np.concatenate([prompt, next_ids_N]).astype(np.int32),
        loss_mask=np.arange(options.prompt + size) >= options.prompt,
        scores=scores,
    )


def make_scores(
    size: int, options: LoadingOptions, laws: PowerLaws, generator: np.random.Generator
) -> tuple[Scores, np.ndarray]:
    """Scores of `size` positions, and the actual next token of each, one of the kept."""
    law_N = generator.integers(0, len(EXPONENTS), size)
    count_N = laws.kept[law_N]
    starts_N, of_M = segment_starts(count_N), np.repeat(np.arange(size), count_N)
    rank_M = np.arange(len(of_M)) - starts_N[of_M]
    mean_M = -EXPONENTS[law_N][of_M] * np.log1p(rank_M) - laws.log_total[law_N][of_M]
    rest_N = np.clip(1 - np.add.reduceat(np.exp(mean_M), starts_N), 1e-6, None)
    rest_N[count_N == options.vocabulary] = 0

    move_N = np.minimum(
        np.exp(generator.normal(np.log(0.1), 0.8, size)), 0.5
    )  # distance of dpo and reverse from the reference, nats
    logit_M = mean_M + SCATTER * generator.standard_normal(len(of_M))
    towards_M = move_N[of_M] * generator.standard_normal(len(of_M))
    away_M = 0.9 * towards_M + 0.3 * move_N[of_M] * generator.standard_normal(len(of_M))
    drift_N = 0.2 * move_N * generator.standard_normal(size)
    logits = {"dpo": logit_M + towards_M, "reverse": logit_M - away_M, "reference": logit_M}
    rests = {"dpo": rest_N * np.exp(drift_N), "reverse": rest_N * np.exp(-drift_N), "reference": rest_N}

    kept: dict[Role, np.ndarray] = {}
    tails: dict[Role, np.ndarray] = {}
    for role in options.cached_roles:
        log_total_N = np.log(np.add.reduceat(np.exp(logits[role]), starts_N) + rests[role])
        kept[role] = logits[role] - log_total_N[of_M]
        with np.errstate(divide="ignore"):
            tails[role] = np.log(rests[role]) - log_total_N
    distances = {
        n: np.add.reduceat(np.abs(np.exp(kept["dpo"]) - np.exp(kept[n])), starts_N)
        + np.abs(np.exp(tails["dpo"]) - np.exp(tails[n]))
        for n in options.negatives
    }
    ids_M, place_M = _ids(count_N, of_M, rank_M, options.vocabulary, generator)
    next_N = starts_N + np.minimum(generator.geometric(0.6, size), count_N) - 1
    scores = Scores(
        support_count=count_N.astype(np.int32),
        support_ids=ids_M,
        logprobs={role: values[place_M] for role, values in kept.items()},
        next_logprob={role: values[place_M][next_N] for role, values in kept.items()},
        tail_logprob=tails,
        l1_distance=distances,
        tail_logpartition={
            pair: _partitions(tails[pair.anchor], tails["dpo"], tails[pair.negative], distances[pair.negative], move_N)
            for pair in options.pairs
        },
    )
    return scores, ids_M[next_N]


def _ids(
    count_N: np.ndarray, of_M: np.ndarray, rank_M: np.ndarray, vocabulary: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Ids that ascend inside a position, (M,) int32, low ones more often; and the rank that each is given to."""
    draw_M = generator.random(len(of_M))
    draw_M = draw_M[np.lexsort((draw_M, of_M))]
    ids_M = np.floor(draw_M**2.5 * (vocabulary - count_N[of_M])).astype(np.int32) + rank_M.astype(np.int32)
    return ids_M, np.lexsort((generator.random(len(of_M)), of_M))


def _partitions(
    anchor_N: np.ndarray, dpo_N: np.ndarray, negative_N: np.ndarray, distance_N: np.ndarray, move_N: np.ndarray
) -> np.ndarray:
    """Log partitions at the nodes above 0, of normal log-ratios; reference/reference has dpo's tail at w = 1."""
    strength_NJ = NODES.at(distance_N.astype(np.float32))[:, 1:]
    bend_N1 = move_N[:, None] ** 2 / 2
    with np.errstate(invalid="ignore"):
        slope_N1 = np.where(np.isneginf(anchor_N), 0, dpo_N - negative_N)[:, None] - bend_N1
    return anchor_N[:, None] + strength_NJ * slope_N1 + strength_NJ**2 * bend_N1


def write_cache(folder: Path, options: LoadingOptions, responses: list[Response], rows_per_batch: int) -> None:
    """Write a complete cache of the responses, as a build would."""
    folder.mkdir(parents=True, exist_ok=True)
    index_sha256 = write_index(folder, index_of(responses))
    write_planned(folder, make_plan(options, tuple(_shards(responses)), rows_per_batch, index_sha256), responses)


def make_plan(options: LoadingOptions, shards: tuple[ShardPlan, ...], rows_per_batch: int, index_sha256: str) -> Plan:
    return Plan(
        identity={
            "models": {role: {"synthetic": options.seed} for role in options.cached_roles},
            "tokenizer": {"vocabulary_sha256": json_sha256(_vocabulary(options.vocabulary))},
            "data": {"rows": shards[-1].first_row + shards[-1].rows},
        },
        roles=options.cached_roles,
        pairs=options.pairs,
        nodes=NODES,
        vocabulary_size=options.vocabulary,
        values=options.values,
        rows_per_batch=rows_per_batch,
        log_threshold=None,
        skipped={},
        truncated=0,
        prompt_not_prefix=0,
        index_sha256=index_sha256,
        shards=shards,
    )


def write_planned(folder: Path, plan: Plan, responses: list[Response]) -> None:
    """Write the files of a plan except the index, which exists."""
    write_json(folder, VOCABULARY_FILE, _vocabulary(plan.vocabulary_size))
    write_bytes(folder, PLAN_FILE, plan_bytes(plan))
    findings = Findings.nothing(plan)
    for number, shard in enumerate(plan.shards):
        write_shard(folder, shard, plan, responses[shard.first_row : shard.first_row + shard.rows])
        findings.read_back(folder, plan, number)
    write_manifest(folder, finished(folder, plan, [findings]))


def _vocabulary(size: int) -> dict[str, int]:
    return {f"token{i}": i for i in range(size)}


def index_of(responses: list[Response]) -> RowIndex:
    return RowIndex(
        pair_id=np.array([response.pair_id for response in responses], np.int64),
        chosen=np.array([response.chosen for response in responses], bool),
        num_tokens=np.array([len(response.input_ids) for response in responses], np.int32),
        num_positions=np.array([response.scores.num_positions for response in responses], np.int32),
    )


def _shards(responses: list[Response]) -> Iterator[ShardPlan]:
    shard = ShardPlan(file="part-00000.arrow", first_row=0, rows=0, positions=0)
    for number, response in enumerate(responses):
        if shard.positions >= TOKENS_PER_SHARD:
            yield shard
            name = f"part-{int(shard.file[5:10]) + 1:05d}.arrow"
            shard = ShardPlan(file=name, first_row=number, rows=0, positions=0)
        positions = shard.positions + response.scores.num_positions
        shard = replace(shard, rows=shard.rows + 1, positions=positions)
    yield shard
