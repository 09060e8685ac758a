"""What is computed over the whole vocabulary of a chunk: by torch on any device, or by the Triton kernels on a GPU.

Both take the roles' logits and may overwrite them. `shards.cli.device.resolve_kernels` chooses.

Dimensions: C positions of a chunk, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from precompute.scoring.device_scores import DeviceScores, joined
from precompute.scoring.partitions import Logits, log_partitions
from precompute.scoring.support import SupportRule, best_log_scores, summarised
from shards.cli.device import Kernels
from shards.format.nodes import StrengthNodes
from shards.format.schema import Pair, Role


class Vocabulary(Protocol):
    """The arithmetic over the vocabulary for the given pairs and nodes."""

    def summarise(self, logits: Logits, next_ids_C: torch.Tensor, rule: SupportRule) -> DeviceScores:
        """All stored values of a chunk."""
        ...

    def best_log_scores(self, logits: Logits, highest: int) -> tuple[Mapping[Role, torch.Tensor], np.ndarray]:
        """(log partitions, logs of the best `highest` scores of each position, descending, (C, highest))."""
        ...


def vocabulary(kernels: Kernels, pairs: Sequence[Pair], nodes: StrengthNodes) -> Vocabulary:
    if kernels == "torch":
        return TorchVocabulary(pairs=tuple(pairs), nodes=nodes)
    from precompute.scoring.kernels.launch import TritonVocabulary  # Triton is not everywhere

    return TritonVocabulary(pairs=tuple(pairs), nodes=nodes)


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchVocabulary:
    """The plain torch code of `partitions` and `support`."""

    pairs: tuple[Pair, ...]
    nodes: StrengthNodes

    def summarise(self, logits: Logits, next_ids_C: torch.Tensor, rule: SupportRule) -> DeviceScores:
        log_partition, logprobs = normalised_(logits)
        found = list(summarised(logprobs, next_ids_C, rule=rule, pairs=self.pairs, nodes=self.nodes))
        return replace(joined(found), log_partition=log_partition)

    def best_log_scores(self, logits: Logits, highest: int) -> tuple[Mapping[Role, torch.Tensor], np.ndarray]:
        log_partition, logprobs = normalised_(logits)
        return log_partition, best_log_scores(logprobs, highest, pairs=self.pairs, nodes=self.nodes)


def normalised_(logits: Logits) -> tuple[dict[Role, torch.Tensor], Logits]:
    """(role -> log partition (C,), role -> log-probs (C, V)); the logits become the log-probs."""
    partitions, logprobs = {}, {}
    for role, logits_CV in logits.items():
        partition_C1 = log_partitions(logits_CV)
        partitions[role], logprobs[role] = partition_C1[:, 0], logits_CV.sub_(partition_C1)
    return partitions, logprobs
