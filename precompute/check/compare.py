"""Compares cached, sparse values with live, dense ones: errors, losses and gradients. Pure.

The dense side is role -> log-probs over the whole vocabulary; the sparse side is what a cache holds of the same
positions. Arithmetic is in float64. Gradients are over the student's logits, each position's times its lambda_t.

Dimensions: N positions of a chunk, V vocabulary, M kept tokens over the N positions.
"""

from collections.abc import Mapping

import numpy as np
import torch

from precompute.check.sums import Comparison, ErrorSum, LossSums, ScoreErrors, TeacherErrors, as_tensor
from precompute.scoring.dense import DenseTeacher, dense_divergence, dense_teacher
from precompute.scoring.partitions import Logprobs, l1_distances
from shards import Divergence, TeacherSpec
from shards.format.encoding.spans import Span
from shards.format.nodes import StrengthNodes
from shards.format.schema import Role
from shards.format.scores import Scores
from shards.teacher.compose import LOW_STRENGTH, Teacher, compose
from shards.teacher.divergence import Buckets

STAGES: Mapping[str, float] = {"at the reference": 0.0, "half way": 0.5, "nearly there": 0.9}
"""Students that are compared: how far each has come from the reference to the teacher, in logits."""


def compare(
    logprobs: Logprobs,
    next_ids_N: torch.Tensor,
    scores: Scores,
    span: Span,
    spec: TeacherSpec,
    nodes: StrengthNodes,
    divergence: Divergence,
) -> Comparison:
    """Compare what a cache holds of N positions with the models' log-probs, role -> (N, V).

    next_ids_N: the actual next tokens; span: what the stored scores stand for. The caller has checked that the cache
    serves the spec. Teacher and losses are those of the scores themselves, as a student gets them.
    """
    logprobs = {role: l_NV.double() for role, l_NV in logprobs.items()}
    dense, sparse = dense_teacher(logprobs, spec), compose(scores, spec, nodes)
    return Comparison(
        scores=score_errors(logprobs, next_ids_N, span),
        teacher=teacher_errors(dense.logprobs, sparse),
        stages={
            name: loss_sums(student_logprobs(logprobs["reference"], dense.logprobs, done), dense, sparse, divergence)
            for name, done in STAGES.items()
        },
    )


def score_errors(logprobs: Logprobs, next_ids_N: torch.Tensor, span: Span) -> ScoreErrors:
    """Errors of all cached values except the tails' log partitions, whose effect is in `teacher_errors`."""
    low, high = span
    kept = support_index(low.support_count, low.support_ids, next_ids_N.device)
    live = {role: logprobs[role].double() for role in low.logprobs}
    distances = l1_distances(live)

    def outside(field: str, wanted: Mapping[Role, torch.Tensor]) -> dict[Role, ErrorSum]:
        lowest, highest = getattr(low, field), getattr(high, field)
        return {key: ErrorSum.outside(lowest[key], highest[key], values) for key, values in wanted.items()}

    return ScoreErrors(
        kept=outside("logprobs", {role: l_NV[kept] for role, l_NV in live.items()}),
        next=outside("next_logprob", {role: l_NV.gather(1, next_ids_N[:, None])[:, 0] for role, l_NV in live.items()}),
        tail=outside("tail_logprob", {role: _tail(l_NV, kept) for role, l_NV in live.items()}),
        l1_distance=outside("l1_distance", distances),
    )


def teacher_errors(dense_NV: torch.Tensor, sparse: Teacher) -> TeacherErrors:
    """Errors of a composed teacher against log p* over the whole vocabulary. Tails may be off between nodes."""
    kept = support_index(sparse.support_count, sparse.support_ids, dense_NV.device)
    return TeacherErrors(
        kept=ErrorSum.between(sparse.logprobs, dense_NV[kept]),
        tail=ErrorSum.between(sparse.tail_logprob, _tail(dense_NV, kept)),
    )


def student_logprobs(reference_NV: torch.Tensor, teacher_NV: torch.Tensor, done: float) -> torch.Tensor:
    """A student on the straight line, in logits, from the reference (done = 0) to the teacher (done = 1), (N, V)."""
    return torch.lerp(reference_NV, teacher_NV, done).log_softmax(-1)


def loss_sums(student_NV: torch.Tensor, dense: DenseTeacher, sparse: Teacher, divergence: Divergence) -> LossSums:
    """The loss of a student (normalised log-probs) under both teachers, each with its own lambda_t."""
    sparse_weight_N = as_tensor(sparse.weight, student_NV.device)
    dense_N, dense_NV = dense_divergence(student_NV, dense.logprobs, divergence)
    sparse_N, sparse_NV = sparse_divergence(student_NV, sparse, divergence)
    dense_N, dense_NV = dense.weight * dense_N, dense_NV.mul_(dense.weight[:, None])
    sparse_N, sparse_NV = sparse_weight_N * sparse_N, sparse_NV.mul_(sparse_weight_N[:, None])
    square_N, low_N = dense_NV.square().sum(-1), dense.strength < LOW_STRENGTH
    return LossSums(
        positions=len(dense_N),
        dense_loss=float(dense_N.sum()),
        sparse_loss=float(sparse_N.sum()),
        dense_square=float(square_N.sum()),
        sparse_square=float(sparse_NV.square().sum()),
        difference_square=float(sparse_NV.sub_(dense_NV).square_().sum()),
        low_positions=int(low_N.sum()),
        low_loss=float(dense_N[low_N].sum()),
        low_square=float(square_N[low_N].sum()),
    )


def sparse_divergence(
    student_NV: torch.Tensor, teacher: Teacher, divergence: Divergence
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same over buckets: every kept token, and the tail. Student: normalised log-probs, (N, V)."""
    device, gradient_NV = student_NV.device, student_NV.clone(memory_format=torch.contiguous_format)
    buckets = Buckets(
        count=torch.as_tensor(teacher.support_count, dtype=torch.long, device=device),
        ids=torch.as_tensor(teacher.support_ids, dtype=torch.long, device=device),
        logprobs=as_tensor(teacher.logprobs, device),
        tail=as_tensor(teacher.tail_logprob, device),
    )
    value_N, _, _ = divergence.with_gradient_(gradient_NV, buckets, torch)
    return value_N, gradient_NV


def support_index(count_N: np.ndarray, ids_M: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(position, token id) of every kept token, each (M,): an index into an (N, V) tensor."""
    position_M = np.repeat(np.arange(len(count_N)), count_N)
    return torch.from_numpy(position_M).to(device), torch.from_numpy(ids_M.astype(np.int64)).to(device)


def _outside(logprobs_NV: torch.Tensor, kept: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """A copy with -inf at the kept tokens."""
    return logprobs_NV.index_put(kept, logprobs_NV.new_tensor(-torch.inf))


def _tail(logprobs_NV: torch.Tensor, kept: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Log of the mass outside the support, (N,); -inf where nothing is outside."""
    return _outside(logprobs_NV, kept).logsumexp(-1)
