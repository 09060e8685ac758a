"""The measurements, each a list of plain numbers: angles in degrees, shares as fractions, bytes per position.

Dimensions: N positions, C of a chunk, V vocabulary, M kept tokens.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.fidelity.dense import NODES, Dense, score
from benchmarks.fidelity.supports import SUPPORTS, keep, rank, scores_on, stored
from precompute.check.compare import compare, sparse_divergence, support_index
from precompute.check.sums import Comparison
from precompute.models.folders import load_merged
from precompute.models.role_model import RoleModel
from precompute.scoring.dense import angle_degrees, dense_divergence, dense_teacher
from precompute.tokens.tokenized import TokenizedResponse
from shards import Divergence, TeacherSpec
from shards.format.encoding.spans import Span
from shards.format.schema import VALUES, Role
from shards.format.scores import Scores, concatenate, segment_starts
from shards.modelfiles.find import resolve
from shards.teacher.compose import compose
from shards.teacher.spec import teacher_logits

CHUNK = 32
GOAL_GAINS = (2.0, 5.0, 10.0, 20.0)
SIZES = (16, 32, 64, 96, 128, 144, 160, 192, 256, 512)
DIVERGENCES = {
    "reverse KL": Divergence(),
    "forward KL": Divergence(name="forward_kl"),
    "JSD": Divergence(name="jsd"),
}
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One teacher by name."""

    name: str
    spec: TeacherSpec


GOAL_CASES = [Case(name=f"aligndistil, gain {g:g}", spec=TeacherSpec(gain=g)) for g in GOAL_GAINS]
PRESET_CASES = [
    *(Case(name=f"adaptive, gain {g:g}", spec=TeacherSpec.preset("adaptive", gain=g)) for g in (2.0, 10.0, 20.0)),
    Case(name="contrastive, w = 2", spec=TeacherSpec.preset("contrastive")),
    Case(name="linear, w = 2", spec=TeacherSpec.preset("linear")),
]
BETWEEN_CASES = [
    *(Case(name=f"aligndistil, gain {g:g}", spec=TeacherSpec(gain=g)) for g in (1.0, 3.5, 7.0, 12.0, 17.0, 25.0)),
    *(
        Case(name=f"contrastive, w = {b / 0.05:g}", spec=TeacherSpec.preset("contrastive", beta=b))
        for b in (0.0375, 0.075, 0.175)
    ),
]


def compare_case(dense: Dense, scores: Scores, spec: TeacherSpec, divergence: Divergence | None = None) -> Comparison:
    """All positions, in chunks."""
    total: Comparison | None = None
    for i in range(0, len(dense), CHUNK):
        part, end = dense.take(slice(i, i + CHUNK)), min(i + CHUNK, len(dense))
        here, of = scores.slice(i, end), divergence or Divergence()
        found = compare(part.logprobs, part.next_ids, here, Span(here, here), spec, NODES, of)
        total = found if total is None else total + found
    assert total is not None
    return total


def row(name: str, found: Comparison, **more: Any) -> Row:
    """What the tables show of a comparison."""
    stages = found.stages.values()
    return {
        "name": name,
        "angle": [stage.angle_degrees for stage in stages],
        "norm_ratio": [stage.norm_ratio for stage in stages],
        "deficit": [stage.deficit for stage in stages],
        "kept_error": found.teacher.kept.mean,
        "kept_error_max": found.teacher.kept.largest,
        "tail_error": found.teacher.tail.mean,
        "tail_error_max": found.teacher.tail.largest,
        "low_positions": next(iter(stages)).low_positions / next(iter(stages)).positions,
        "low_loss": next(iter(stages)).low_loss_share,
        "low_gradient": next(iter(stages)).low_gradient_share,
        **more,
    }


def cases(dense: Dense, scores: Scores, wanted: Iterable[Case]) -> list[Row]:
    return [row(case.name, compare_case(dense, scores, case.spec)) for case in wanted]


def frontier(dense: Dense, sizes: Sequence[int], supports: Sequence[str]) -> Iterator[Row]:
    """For every support, size and way to store values: bytes, and the worst of all goal cases and stages."""
    for name in supports:
        support = SUPPORTS[name]
        ranked = rank(dense, support)
        for top_k in sizes:
            if top_k > dense.vocabulary_size // 2:
                continue
            exact = scores_on(dense, keep(ranked, support, top_k))
            for values in VALUES if name == "ours" else VALUES[:1]:
                scores, size = stored(exact, values, dense.vocabulary_size)
                found = cases(dense, scores, GOAL_CASES[::3] + GOAL_CASES[2:3])
                teacher = compose(scores, TeacherSpec(), NODES)
                yield {
                    "support": name,
                    "values": values,
                    "top_k": top_k,
                    "positions": len(dense),
                    "mean": exact.num_entries / exact.num_positions,
                    "bytes": size,
                    "coverage": [_mass(scores.tail_logprob["reference"]), _mass(teacher.tail_logprob)],
                    "angle": np.max([r["angle"] for r in found], axis=0).tolist(),
                    "deficit": np.max([r["deficit"] for r in found], axis=0).tolist(),
                }


def _mass(tail_logprob_N: np.ndarray) -> float:
    """The mean mass on the kept tokens."""
    return float(1 - np.exp(tail_logprob_N.astype(np.float64)).mean())


def default_scores(dense: Dense, top_k: int) -> Scores:
    """The cache's content for these positions with our support and compact values."""
    support = SUPPORTS["ours"]
    return stored(scores_on(dense, keep(rank(dense, support), support, top_k)), "compact", dense.vocabulary_size)[0]


def divergences(dense: Dense, scores: Scores) -> list[Row]:
    spec = TeacherSpec()
    return [row(name, compare_case(dense, scores, spec, divergence)) for name, divergence in DIVERGENCES.items()]


def by_entropy(dense: Dense, scores: Scores) -> list[Row]:
    """The half of the positions where the reference is more certain, and the other half."""
    order = dense.entropy().argsort(stable=True)
    half = len(order) // 2
    found = []
    for name, index in (("low entropy", order[:half]), ("high entropy", order[half:])):
        part = dense.take(index)
        compared = compare_case(part, _take(scores, index.numpy()), TeacherSpec())
        found.append(row(name, compared, entropy=float(part.entropy().mean())))
    return found


def between_nodes(dense: Dense, scores: Scores) -> list[Row]:
    """Error of the teacher, and of its log partition against the bound that convexity gives."""
    found = []
    for case in BETWEEN_CASES:
        teacher = compose(scores, case.spec, NODES)
        found.append(
            row(case.name, compare_case(dense, scores, case.spec), bound=float(teacher.tail_bound.mean()),
                bound_max=float(teacher.tail_bound.max()), **_partition_error(dense, scores, case.spec))
        )  # fmt: skip
    return found


def _partition_error(dense: Dense, scores: Scores, spec: TeacherSpec) -> dict[str, float]:
    """Error of the tail's log partition, nats, and the largest excess over its bound."""
    teacher, errors = compose(scores, spec, NODES), []
    first_N = segment_starts(scores.support_count)
    # what was composed, from the first kept token: its logit less its log-prob is the log of the whole partition
    logit_N, dpo_N, negative_N = (
        scores.logprobs[role][first_N].astype(np.float64) for role in (spec.anchor, "dpo", spec.negative)
    )
    logit_N = teacher_logits(logit_N, dpo_N - negative_N, teacher.strength)
    composed_N = logit_N - teacher.logprobs[first_N] + teacher.tail_logprob
    for i in range(0, len(dense), CHUNK):
        part = dense.take(slice(i, i + CHUNK))
        here = scores.slice(i, i + len(part))
        anchor_CV, dpo_CV, negative_CV = (part.logprobs[r].double() for r in (spec.anchor, "dpo", spec.negative))
        strength_C1 = torch.from_numpy(teacher.strength[i : i + len(part)])[:, None]
        logits_CV = teacher_logits(anchor_CV, dpo_CV - negative_CV, strength_C1)
        logits_CV[support_index(here.support_count, here.support_ids, logits_CV.device)] = -torch.inf
        errors.append(np.abs(composed_N[i : i + len(part)] - logits_CV.logsumexp(-1).numpy()))
    error_N = np.concatenate(errors)
    return {
        "partition_error": float(error_N.mean()),
        "partition_error_max": float(error_N.max()),
        "over_bound": float((error_N - teacher.tail_bound).max()),
    }


def parameter_angles(
    folders: Mapping[Role, Path], models: Mapping[Role, RoleModel], rows: Sequence[TokenizedResponse], top_k: int
) -> list[Row]:
    """Angle of the default teacher's two gradients over a real student's parameters; the student is one of the trio.

    An adapter is merged into its base first: all parameters of the student count.
    """
    spec = TeacherSpec()
    dense = score(models, rows, sum(int(row.loss_mask.sum()) for row in rows))
    scores = default_scores(dense, top_k)
    ends = np.cumsum([int(row.loss_mask.sum()) for row in rows])
    found = []
    for role in ("reference", "dpo"):
        student = RoleModel(
            role, load_merged(resolve(str(folders[role])), role, dtype="float32", device="cpu"), dense.vocabulary_size
        )
        parameters = [p.requires_grad_() for p in student.model.parameters()]
        sums = [[torch.zeros_like(p) for p in parameters] for _ in range(2)]
        for row, end in zip(rows, ends, strict=True):
            here = slice(int(end - row.loss_mask.sum()), int(end))
            logits_NV = _logits(student, row)
            wanted = _gradients(logits_NV.detach(), dense.take(here), scores.slice(here.start, here.stop), spec)
            for total, gradient_NV in zip(sums, wanted, strict=True):
                gradients = torch.autograd.grad(logits_NV, parameters, gradient_NV.float(), retain_graph=True)
                for mine, new in zip(total, gradients, strict=True):
                    mine += new
        dense_P, sparse_P = (torch.cat([g.flatten().double() for g in total]) for total in sums)
        squares = (float(vector_P.square().sum()) for vector_P in (dense_P, sparse_P, dense_P - sparse_P))
        found.append(
            {"name": role, "angle": angle_degrees(*squares), "norm_ratio": float(sparse_P.norm() / dense_P.norm())}
        )
    return found


def _gradients(
    logits_NV: torch.Tensor, dense: Dense, scores: Scores, spec: TeacherSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    """The dense and the sparse loss's gradient over a student's logits, each position's times its lambda_t."""
    student_NV = logits_NV.double().log_softmax(-1)
    live, cached = dense_teacher(dense.logprobs, spec), compose(scores, spec, NODES)
    _, dense_NV = dense_divergence(student_NV, live.logprobs, Divergence())
    _, sparse_NV = sparse_divergence(student_NV, cached, Divergence())
    return dense_NV * live.weight[:, None], sparse_NV * torch.from_numpy(cached.weight)[:, None]


def _logits(model: RoleModel, row: TokenizedResponse) -> torch.Tensor:
    ids_BT = torch.from_numpy(row.input_ids.astype(np.int64))[None]
    position_N = torch.from_numpy(np.flatnonzero(row.loss_mask)) - 1
    with model.active():
        return model.logits(model.hidden(ids_BT, torch.ones_like(ids_BT))[0, position_N])


def _take(scores: Scores, index_N: np.ndarray) -> Scores:
    return concatenate([scores.slice(int(i), int(i) + 1) for i in index_N])
