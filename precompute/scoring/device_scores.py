"""DeviceScores: the values of a chunk as tensors on the device, and their way to the host without waiting.

Dimensions: C positions of a chunk, M kept tokens over them, J strength nodes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch

from precompute.feeding.transfer import Fetch, Transfer
from shards.format.schema import Pair, Role
from shards.format.scores import Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceScores:
    """`shards.format.scores.Scores` of a chunk, as tensors of one device, under the same names.

    support_ids, and logprobs of each role, may be longer than M = sum of support_count: what is behind M is left there.
    So nobody has to know M before the host reads the counts.

    log_partition   role -> (C,)   of the logits, nats; not finite where a logit is not, and no value there means
                    anything. Empty for log-probs that were checked before.
    """

    support_count: torch.Tensor
    support_ids: torch.Tensor
    logprobs: Mapping[Role, torch.Tensor]
    next_logprob: Mapping[Role, torch.Tensor]
    tail_logprob: Mapping[Role, torch.Tensor]
    l1_distance: Mapping[Role, torch.Tensor]
    tail_logpartition: Mapping[Pair, torch.Tensor]
    log_partition: Mapping[Role, torch.Tensor]

    def fetch(self, transfer: Transfer) -> "FetchedScores":
        """Begin to copy them to the host."""
        found = [self.support_count, *(tensor for name in PER_POSITION for tensor in getattr(self, name).values())]
        return FetchedScores(self, transfer.fetch(found))


PER_POSITION = ("next_logprob", "tail_logprob", "l1_distance", "tail_logpartition", "log_partition")


class HostScores(NamedTuple):
    """The values on the host; log_partition: role -> (C,)."""

    scores: Scores
    log_partition: dict[Role, np.ndarray]


class FetchedScores:
    """DeviceScores on their way to the host."""

    def __init__(self, scores: DeviceScores, fetch: Fetch) -> None:
        self._scores = scores
        self._fetch = fetch

    def wait(self) -> HostScores:
        """The values on the host. First the counts, which say how many kept tokens there are, then these."""
        scores = self._scores
        count_C, *rest = map(_numpy, self._fetch.wait())
        values = iter(rest)
        by_name: dict[str, Any] = {
            name: dict(zip(getattr(scores, name), values, strict=False)) for name in PER_POSITION
        }
        size = int(count_C.sum())
        entries = [tensor[:size] for tensor in (scores.support_ids, *scores.logprobs.values())]
        ids_M, *logprobs = map(_numpy, self._fetch.more(entries).wait())
        log_partition = by_name.pop("log_partition")
        by_role = dict(zip(scores.logprobs, logprobs, strict=True))
        return HostScores(Scores(support_count=count_C, support_ids=ids_M, logprobs=by_role, **by_name), log_partition)


def joined(parts: Sequence[DeviceScores]) -> DeviceScores:
    """One DeviceScores of all positions of `parts`, in order, which are as long as their counts say."""
    if len(parts) == 1:
        return parts[0]
    by_name: dict[str, Any] = {f.name: _joined([getattr(part, f.name) for part in parts]) for f in fields(DeviceScores)}
    return DeviceScores(**by_name)


def _joined(values: Sequence) -> torch.Tensor | dict:
    if isinstance(values[0], Mapping):
        return {key: torch.cat([value[key] for value in values]) for key in values[0]}
    return torch.cat(list(values))


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.numpy()


def on_host(values: Mapping[Any, torch.Tensor]) -> dict[Any, np.ndarray]:
    """The same as arrays; waits for the device."""
    return {name: tensor.cpu().numpy() for name, tensor in values.items()}
