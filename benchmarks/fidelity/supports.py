"""Ways to choose the kept tokens, ours and the ones to compare with, and the resulting content of a cache.

Dimensions: N positions, C of a chunk, V vocabulary, K most tokens kept at a position, M kept in all.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from benchmarks.fidelity.dense import NODES, PAIRS, Dense
from precompute.build.options import BuildOptions
from precompute.scoring.partitions import Block, Logprobs, l1_distances
from precompute.scoring.support import find_threshold, token_scores, values_on
from shards.format.encoding import codec
from shards.format.plan import Plan
from shards.format.schema import Values, arrow_schema
from shards.format.scores import Response, Scores, concatenate
from shards.format.writer import COMPRESSION_LEVEL
from shards.teacher.spec import TeacherSpec, strength, teacher_logits

CHUNK = 32
CAP = BuildOptions.max_top_k
ROW_POSITIONS = 300
"""Positions of a row, for counting bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """A score of every token, logprobs -> (C, V), and whether every position keeps the same number."""

    name: str
    score: Callable[[Logprobs], torch.Tensor]
    fixed: bool = False


def our_score(logprobs: Logprobs) -> torch.Tensor:
    """The build's."""
    block = Block.of(logprobs)
    return token_scores(block, block.score_strengths(PAIRS, NODES)).log()


def largest_probability(logprobs: Logprobs) -> torch.Tensor:
    """The largest of the reference's probability and of the teachers' at every node of every pair."""
    strengths = Block.of(logprobs).node_strengths(PAIRS, NODES)
    best_CV = torch.maximum(logprobs["reference"], logprobs["dpo"])
    for pair, nodes_CJ in strengths.items():
        difference_CV = logprobs["dpo"] - logprobs[pair.negative]
        for strength_C1 in nodes_CJ[:, 1:].split(1, dim=1):
            logits_CV = teacher_logits(logprobs[pair.anchor], difference_CV, strength_C1)
            best_CV = torch.maximum(best_CV, logits_CV.log_softmax(-1))
    return best_CV


def one_teacher(logprobs: Logprobs) -> torch.Tensor:
    """The probability under the default teacher: caches of one teacher keep the top k of it."""
    spec = TeacherSpec()
    distance_C = l1_distances(logprobs)[spec.negative]
    difference_CV = logprobs["dpo"] - logprobs[spec.negative]
    return teacher_logits(logprobs[spec.anchor], difference_CV, strength(spec, distance_C)[:, None]).log_softmax(-1)


SUPPORTS = {
    support.name: support
    for support in (
        Support(name="ours", score=our_score),
        Support(name="ours, equally many everywhere", score=our_score, fixed=True),
        Support(name="largest probability", score=largest_probability),
        Support(name="top k of one teacher", score=one_teacher, fixed=True),
    )
}


def rank(dense: Dense, support: Support) -> tuple[np.ndarray, np.ndarray]:
    """(scores descending, token ids) of the best tokens of every position, (N, K) each."""
    best = min(CAP, dense.vocabulary_size)
    parts = [
        support.score(dense.take(slice(i, i + CHUNK)).logprobs).topk(best, dim=-1) for i in range(0, len(dense), CHUNK)
    ]
    return np.concatenate([p.values.numpy() for p in parts]), np.concatenate([p.indices.numpy() for p in parts])


def keep(ranked: tuple[np.ndarray, np.ndarray], support: Support, top_k: int) -> list[np.ndarray]:
    """Ascending kept ids of every position, top_k on average."""
    scores_NK, ids_NK = ranked
    if support.fixed:
        count_N = np.full(len(scores_NK), top_k)
    else:
        threshold = find_threshold(scores_NK, top_k=top_k, lowest=1)
        count_N = np.maximum((scores_NK > threshold).sum(axis=1), 1)
    return [np.sort(ids_K[:count]) for ids_K, count in zip(ids_NK, count_N, strict=True)]


def scores_on(dense: Dense, kept: list[np.ndarray]) -> Scores:
    """What the build would store of these positions with these tokens kept, exact values."""
    return concatenate(
        [_scores_on(dense.take(slice(i, i + CHUNK)), kept[i : i + CHUNK]) for i in range(0, len(kept), CHUNK)]
    )


def _scores_on(dense: Dense, kept: list[np.ndarray]) -> Scores:
    kept_CV = torch.zeros(len(dense), dense.vocabulary_size, dtype=torch.bool)
    for row_V, ids in zip(kept_CV, kept, strict=True):
        row_V[torch.from_numpy(ids)] = True
    return values_on(Block.of(dense.logprobs), dense.next_ids, kept_CV, pairs=PAIRS, nodes=NODES)


def stored(scores: Scores, values: Values, vocabulary_size: int) -> tuple[Scores, float]:
    """The values as a reader gets them, and the compressed bytes per position, including input ids."""
    batch, plan = as_batch(scores, values, vocabulary_size)
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", COMPRESSION_LEVEL))
    with pa.ipc.new_file(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    found = concatenate([response.scores for response in codec.decode(batch, plan)])
    return found, sink.getvalue().size / scores.num_positions


def as_batch(scores: Scores, values: Values, vocabulary_size: int) -> tuple[pa.RecordBatch, Plan]:
    """The record batch that a cache would hold of these positions, in rows of ROW_POSITIONS, and the cache's plan."""
    plan = Plan(
        identity={},
        roles=("dpo", "reverse", "reference"),
        pairs=PAIRS,
        nodes=NODES,
        vocabulary_size=vocabulary_size,
        values=values,
        rows_per_batch=4,
        log_threshold=None,
        skipped={},
        truncated=0,
        prompt_not_prefix=0,
        index_sha256="",
        shards=(),
    )
    parts = [
        scores.slice(i, min(i + ROW_POSITIONS, scores.num_positions))
        for i in range(0, scores.num_positions, ROW_POSITIONS)
    ]
    rows = [
        Response(
            sample_id=f"{i}/chosen",
            pair_id=i,
            chosen=True,
            response_start=1,
            input_ids=np.zeros(part.num_positions + 1, dtype=np.int32),
            loss_mask=np.arange(part.num_positions + 1) > 0,
            scores=part,
        )
        for i, part in enumerate(parts)
    ]
    schema = arrow_schema(plan.columns(), build_sha256="")
    return codec.encode(rows, plan, schema), plan
