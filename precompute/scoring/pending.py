"""Scores of a chunk of positions that may still be on a device, or be computed there.

Dimensions: C positions of a chunk, V vocabulary, J strength nodes, M kept tokens over the positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from shards.format.schema import Pair, Role
from shards.format.scores import Scores

Logits = Mapping[Role, torch.Tensor]
"""Role -> (C, V) float32."""


class Pending(Protocol):
    """Scores of a chunk that a device may still be computing.

    partitions   role -> (C,): log of the sum of exp(logits), nats; not finite where a logit is not (NaN, or the logit)
    """

    @property
    def partitions(self) -> Mapping[Role, torch.Tensor]: ...

    def fetch(self) -> Scores:
        """The scores as numpy arrays; waits for the device."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """Scores that are there already."""

    partitions: Mapping[Role, torch.Tensor]
    scores: Scores

    def fetch(self) -> Scores:
        return self.scores


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceScores:
    """The fields of `Scores` as tensors on the device, in the order of `roles`, `negatives` and `pairs`; nats.

    support_count (C,) int32; support_ids (capacity,) int32 and logprobs (roles, capacity), of which the first
    M = sum of support_count count; next_logprob, tail_logprob and partition (roles, C); l1_distance (negatives, C);
    tail_logpartition (pairs, C, J - 1).
    """

    roles: tuple[Role, ...]
    negatives: tuple[Role, ...]
    pairs: tuple[Pair, ...]
    support_count: torch.Tensor
    support_ids: torch.Tensor
    logprobs: torch.Tensor
    next_logprob: torch.Tensor
    tail_logprob: torch.Tensor
    l1_distance: torch.Tensor
    tail_logpartition: torch.Tensor
    partition: torch.Tensor

    @property
    def partitions(self) -> Mapping[Role, torch.Tensor]:
        return dict(zip(self.roles, self.partition, strict=True))

    def fetch(self) -> Scores:
        count_C = self.support_count.cpu().numpy()
        kept = int(count_C.sum())
        return Scores(
            support_count=count_C,
            support_ids=self.support_ids[:kept].cpu().numpy(),
            logprobs=_named(self.roles, self.logprobs[:, :kept]),
            next_logprob=_named(self.roles, self.next_logprob),
            tail_logprob=_named(self.roles, self.tail_logprob),
            l1_distance=_named(self.negatives, self.l1_distance),
            tail_logpartition=_named(self.pairs, self.tail_logpartition),
        )


def _named(names: Sequence[Any], values: torch.Tensor) -> dict[Any, np.ndarray]:
    """Each name's part of a tensor, as numpy arrays."""
    return dict(zip(names, values.contiguous().cpu().numpy(), strict=True))
