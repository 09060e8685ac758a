"""Measures both students in the same way: dense metrics on the same held-out responses, with live models.

Dimensions: N response positions of a batch, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.online.live import Batch, TokenRow, collate, compose_live, response_logprobs, reverse_kl, sequence_mean
from shards import TeacherSpec
from shards.format.schema import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Metrics of a student on held-out responses; sums over the whole vocabulary.

    loss              lambda_t KL(student || teacher), mean over each sequence, then over sequences, nats
    expected_reward   beta * (l_dpo - l_reverse), expected under the student, mean over response tokens, nats
    kl_reference      KL(student || reference), mean over response tokens, nats
    """

    loss: float
    expected_reward: float
    kl_reference: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldOutBatch:
    """A batch of responses, and the values to measure students against.

    reference, teacher   (N, V)   log-probs, nats
    reward               (N, V)   beta * (l_dpo - l_reverse), nats
    weight               (N,)     lambda_t of the teacher
    """

    batch: Batch
    reference: torch.Tensor
    reward: torch.Tensor
    teacher: torch.Tensor
    weight: torch.Tensor


@torch.no_grad()
def held_out_batches(
    models: Mapping[Role, Any], rows: Sequence[TokenRow], spec: TeacherSpec, vocabulary_size: int, *, batch_size: int
) -> list[HeldOutBatch]:
    """The held-out responses, each model run over them once; 12 V bytes of memory for every response position."""
    held_out = []
    for start in range(0, len(rows), batch_size):
        batch = collate(rows[start : start + batch_size])
        batch = {name: tensor.to(models["reference"].device) for name, tensor in batch.items()}
        logprobs = {role: response_logprobs(model, batch, vocabulary_size) for role, model in models.items()}
        teacher_NV, weight_N = compose_live(logprobs, spec)
        held_out.append(
            HeldOutBatch(
                batch=batch,
                reference=logprobs["reference"],
                reward=spec.beta * (logprobs["dpo"] - logprobs["reverse"]),
                teacher=teacher_NV,
                weight=weight_N,
            )
        )
    return held_out


@torch.no_grad()
def measure(student: Any, held_out: Sequence[HeldOutBatch], vocabulary_size: int) -> Metrics:
    """The student's metrics over all held-out responses: sums over counts, never an average of averages."""
    training = student.training
    student.eval()
    loss = reward = kl = 0.0
    sequences = positions = 0
    for part in held_out:
        student_NV = response_logprobs(student, part.batch, vocabulary_size)
        size_B = part.batch["size"]
        weighted_N = part.weight * reverse_kl(student_NV, part.teacher)
        loss += float(sequence_mean(weighted_N.double(), size_B)) * len(size_B)
        kl += float(reverse_kl(student_NV, part.reference).double().sum())
        reward += float((student_NV.exp() * part.reward).sum(-1).double().sum())
        sequences += len(size_B)
        positions += len(student_NV)
    student.train(training)
    return Metrics(loss=loss / sequences, expected_reward=reward / positions, kl_reference=kl / positions)
