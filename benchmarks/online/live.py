"""The online algorithm, dense: live models, whole vocabularies, autograd. A cache replaces this.

The formulas are written out here, independently of `shards.teacher`, so that a mistake there shows as a difference; a
`TeacherSpec` only names the teacher. Zhang et al. 2025 (arXiv 2503.02832), Theorem 1 and section 4.

Dimensions: B sequences of a batch, T tokens, N response positions of the batch, V vocabulary, H hidden size, W width of
an output layer, V or more.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch.nn.utils.rnn import pad_sequence

from shards import TeacherSpec
from shards.format.schema import Role
from shards.modelfiles.head import LogitTransform

Batch = Mapping[str, torch.Tensor]
"""The output of `collate`."""


class TokenRow(Protocol):
    """A tokenised response: input_ids (T,), and loss_mask (T,), true at the tokens of the response."""

    @property
    def input_ids(self) -> np.ndarray: ...
    @property
    def loss_mask(self) -> np.ndarray: ...


def collate(rows: Sequence[TokenRow]) -> dict[str, torch.Tensor]:
    """One batch, padded on the right.

    input_ids, attention_mask   (B, T)
    position   (N,)   b * T + t of the hidden state that predicts a response token
    size       (B,)   response positions of each sequence
    """
    lengths_B = torch.tensor([len(row.input_ids) for row in rows])
    input_ids_BT = pad_sequence([torch.from_numpy(row.input_ids.astype(np.int64)) for row in rows], batch_first=True)
    loss_mask_BT = pad_sequence([torch.from_numpy(row.loss_mask.astype(bool)) for row in rows], batch_first=True)
    return {
        "input_ids": input_ids_BT,
        "attention_mask": (torch.arange(input_ids_BT.shape[1]) < lengths_B[:, None]).long(),
        "position": loss_mask_BT.flatten().nonzero()[:, 0] - 1,
        "size": loss_mask_BT.sum(-1),
    }


def response_logprobs(model: Any, batch: Batch, vocabulary_size: int) -> torch.Tensor:
    """Log-probs at the response positions, (N, V), nats, float32 at least.

    The output layer runs at these positions only, in the model's dtype.
    """
    ids_BT, mask_BT = batch["input_ids"], batch["attention_mask"]
    hidden_BTH = model.base_model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)[0]
    product_NW = model.get_output_embeddings()(hidden_BTH.flatten(0, 1)[batch["position"]])
    logits_NV = LogitTransform.of(model.config)(product_NW[:, :vocabulary_size], torch)
    return F.log_softmax(logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)), dim=-1)


def roles_of(spec: TeacherSpec) -> set[Role]:
    """The models that a step with this teacher has to run in addition to the student."""
    return {"dpo", spec.anchor, spec.negative}


def compose_live(logprobs: Mapping[Role, torch.Tensor], spec: TeacherSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """(log p* (N, V), lambda_t (N,)) from the log-probs, each (N, V), of the roles that the teacher needs."""
    dpo_NV, negative_NV = logprobs["dpo"], logprobs[spec.negative]
    if spec.strength == "adaptive":
        l1_distance_N = (dpo_NV.exp() - negative_NV.exp()).abs().sum(-1)
        strength_N = spec.gain * l1_distance_N + 1e-3
        weight_N = spec.beta / strength_N
    else:
        strength_N = torch.full_like(dpo_NV[:, 0], spec.beta / spec.kl_coef)
        weight_N = torch.full_like(strength_N, spec.kl_coef)
    logits_NV = logprobs[spec.anchor] + strength_N[:, None] * (dpo_NV - negative_NV)
    return F.log_softmax(logits_NV, dim=-1), weight_N


@torch.no_grad()
def live_teacher(
    models: Mapping[Role, Any], batch: Batch, spec: TeacherSpec, vocabulary_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log p* (N, V), lambda_t (N,)) from forward passes of the models that the teacher needs."""
    logprobs = {role: response_logprobs(models[role], batch, vocabulary_size) for role in sorted(roles_of(spec))}
    return compose_live(logprobs, spec)


def live_loss(
    student: Any, models: Mapping[Role, Any], batch: Batch, spec: TeacherSpec, vocabulary_size: int
) -> torch.Tensor:
    """Reverse KL to the live teacher, weighted by lambda_t: mean over each sequence, then over sequences; a scalar.

    Autograd computes the student's part. This is the whole online step except `backward()` and the optimizer.
    """
    teacher_NV, weight_N = live_teacher(models, batch, spec, vocabulary_size)
    student_NV = response_logprobs(student, batch, vocabulary_size)
    return sequence_mean(weight_N * reverse_kl(student_NV, teacher_NV), batch["size"])


def reverse_kl(student_NV: torch.Tensor, other_NV: torch.Tensor) -> torch.Tensor:
    """sum_v p_s (log p_s - log p), (N,), nats, between log-probs over the whole vocabulary."""
    return (student_NV.exp() * (student_NV - other_NV)).sum(-1)


def sequence_mean(values_N: torch.Tensor, size_B: torch.Tensor) -> torch.Tensor:
    """Mean over sequences of each sequence's mean over its positions; a scalar."""
    per_row_N = (size_B * len(size_B)).repeat_interleave(size_B)
    return (values_N / per_row_N).sum()
