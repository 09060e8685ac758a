"""Scorer: forward passes, and log-probs at response positions only, in chunks, never a whole (T, V) tensor.

Dimensions: B responses of a batch, T tokens, N response positions of the batch, C positions of a chunk, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from precompute.feeding.order import ahead, one_behind
from precompute.feeding.stages import Stages
from precompute.feeding.transfer import Fetch, Transfer
from precompute.models.role_model import RoleModel
from precompute.scoring.device_scores import DeviceScores, FetchedScores, on_host
from precompute.scoring.finite import finite_states, require_finite_states, require_finite_where
from precompute.scoring.packing import Packed, pack, pack_flat, places, row_ends
from precompute.scoring.support import SupportRule, next_logprob
from precompute.scoring.vocabulary import Vocabulary, normalised_, vocabulary
from precompute.tokens.tokenized import Row
from shards.cli.device import Kernels
from shards.errors import NonFiniteLogits
from shards.format.nodes import StrengthNodes
from shards.format.schema import Pair, Role
from shards.format.scores import Scores, concatenate
from shards.modelfiles.precision import remedy

Batch = Sequence[Row]
Chunk = tuple[Mapping[Role, torch.Tensor], torch.Tensor]
"""Log-probs of all roles, (C, V) float32, and the actual next ids, (C,)."""


class Hidden(NamedTuple):
    """A batch with its hidden states: role -> (N, H), at the tokens that predict its response tokens.

    finite: whether all states of each role are; None if that was required before.
    """

    batch: Batch
    states: dict[Role, torch.Tensor]
    packed: Packed
    finite: Fetch | None

    @property
    def next_ids(self) -> torch.Tensor:
        """The response tokens, (N,)."""
        return self.packed.next_ids


class _Part(NamedTuple):
    """Some positions of a batch."""

    hidden: Hidden
    positions: slice
    is_last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """Scores batches of responses with the models of all roles. Deterministic for a given batch.

    one_at_a_time: a model is on the device only while it computes the hidden states of all batches of a call. These
    wait in host memory: H values of the body's dtype for each role and response position. So pass the batches of a
    shard, not of a data set. The values are the same.

    share_prompts: neighbours of one pair in a batch share one prompt (`packing`); the values are the same up to
    rounding, for models that pass `require_shared_prompts`.

    padding_free: the rows of a batch are run as one; the values are the same up to rounding, for models that pass
    `require_padding_free`.

    Raises NonFiniteLogits, naming role, sample and position.
    """

    models: Mapping[Role, RoleModel]
    pairs: Sequence[Pair]
    nodes: StrengthNodes
    chunk_positions: int
    device: torch.device
    one_at_a_time: bool = False
    share_prompts: bool = False
    padding_free: bool = False
    kernels: Kernels = "torch"
    transfer: Transfer = field(default_factory=Transfer)
    stages: Stages = field(default_factory=Stages)

    @property
    def vocabulary(self) -> Vocabulary:
        """What computes over the whole vocabulary."""
        return vocabulary(self.kernels, self.pairs, self.nodes)

    def score(self, batches: Iterable[Batch], rule: SupportRule) -> Iterator[list[Scores]]:
        """The scores of each response, batch after batch; those of a chunk are read when the next one is begun."""
        parts: list[Scores] = []
        for chunk, fetched in one_behind(self._fetched(batches, rule)):
            with self.stages.waiting("results"):
                found = fetched.wait()
            if not parts:
                self._require_finite_states(chunk.hidden)
            self._require_finite(found.log_partition, chunk)
            parts.append(found.scores)
            if chunk.is_last:
                whole, parts = concatenate(parts), []
                yield [whole.slice(start, stop) for start, stop in row_ends(chunk.hidden.batch)]

    def next_logprobs(self, batches: Sequence[Batch]) -> Iterator[list[dict[Role, np.ndarray]]]:
        """The log-probs of each response's own tokens, role -> (N,), without choosing the kept tokens."""
        for batch, chunks in zip(batches, self.chunks(batches), strict=True):
            parts = [{role: next_logprob(l_CV, next_C) for role, l_CV in found.items()} for found, next_C in chunks]
            joined = {role: np.concatenate([part[role] for part in parts]) for role in self.models}
            yield [{role: l_N[start:stop] for role, l_N in joined.items()} for start, stop in row_ends(batch)]

    def ranked_scores(self, batches: Sequence[Batch], highest: int) -> Iterator[np.ndarray]:
        """Logs of the best `highest` token scores of every position, descending, (N, highest); for the threshold."""
        for hidden in self.hidden(batches):
            self._require_finite_states(hidden)
            yield np.concatenate([self._ranked(chunk, highest) for chunk in self._parts(hidden)])

    @torch.no_grad()
    def _ranked(self, chunk: _Part, highest: int) -> np.ndarray:
        log_partition, ranked_CK = self.vocabulary.best_log_scores(self._all_logits(chunk), highest)
        self._require_finite(on_host(log_partition), chunk)
        return ranked_CK

    def chunks(self, batches: Sequence[Batch]) -> Iterator[Iterator[Chunk]]:
        """The chunks of each batch: log-probs of all roles and the actual next ids, position after position."""
        for hidden in self.hidden(batches):
            yield self.chunks_of(hidden)

    @torch.no_grad()
    def chunks_of(self, hidden: Hidden) -> Iterator[Chunk]:
        """The chunks of one batch."""
        self._require_finite_states(hidden)
        for chunk in self._parts(hidden):
            log_partition, logprobs = normalised_(self._all_logits(chunk))
            self._require_finite(on_host(log_partition), chunk)
            yield logprobs, hidden.next_ids[chunk.positions]

    def hidden(self, batches: Iterable[Batch]) -> Iterator[Hidden]:
        """The hidden states that predict the response tokens of each batch."""
        prepared = ahead(self._prepared, batches, self.transfer.ahead)
        if not self.one_at_a_time:
            for batch, packed in self._received(prepared):
                states = {role: self._states(model, packed) for role, model in self.models.items()}
                with self.stages.work("bodies"):
                    finite = self.transfer.fetch([finite_states(states, self.device)])
                yield Hidden(batch, states, packed, finite)
            return
        ready = list(prepared)
        waiting: list[dict[Role, torch.Tensor]] = [{} for _ in ready]
        for role, model in self.models.items():
            with model.on(self.device):
                fetching = (self.transfer.fetch([self._states(model, packed)]) for _, packed in self._received(ready))
                for (batch, _), fetched, found in zip(ready, one_behind(fetching), waiting, strict=True):
                    (found[role],) = fetched.wait()
                    require_finite_states({role: found[role]}, self.models, batch)
        for batch, packed in self._received(ready):
            back = {role: self.transfer.send(states, self.device) for role, states in waiting.pop(0).items()}
            yield Hidden(batch, back, packed, None)

    def _prepared(self, batch: Batch) -> tuple[Batch, Packed]:
        """The batch packed, in memory from which the device can copy it."""
        packed = pack_flat(batch) if self.padding_free else pack(batch, share_prompts=self.share_prompts)
        return batch, packed.moved(self.transfer.pinned)

    def _received(self, prepared: Iterable[tuple[Batch, Packed]]) -> Iterator[tuple[Batch, Packed]]:
        """Packed batches, on the device."""
        batches = iter(prepared)
        while True:
            with self.stages.waiting("input"):
                found = next(batches, None)
            if found is None:
                return
            batch, packed = found
            yield batch, packed.moved(lambda tensor: self.transfer.send(tensor, self.device))

    def _states(self, model: RoleModel, packed: Packed) -> torch.Tensor:
        with self.stages.work("bodies"):
            return packed_states(model, packed)

    def _fetched(self, batches: Iterable[Batch], rule: SupportRule) -> Iterator[tuple[_Part, FetchedScores]]:
        """Each chunk's scores, on their way to the host."""
        for hidden in self.hidden(batches):
            for chunk in self._parts(hidden):
                with self.stages.work("vocabulary"):
                    scores = self._summary(chunk, rule)
                    fetched = scores.fetch(self.transfer)
                yield chunk, fetched

    def _parts(self, hidden: Hidden) -> Iterator[_Part]:
        total = len(hidden.next_ids)
        for start in range(0, total, self.chunk_positions):
            stop = min(start + self.chunk_positions, total)
            yield _Part(hidden, slice(start, stop), stop == total)

    @torch.no_grad()
    def _summary(self, chunk: _Part, rule: SupportRule) -> DeviceScores:
        next_ids_C = chunk.hidden.next_ids[chunk.positions]
        return self.vocabulary.summarise(self._all_logits(chunk), next_ids_C, rule)

    def _all_logits(self, chunk: _Part) -> dict[Role, torch.Tensor]:
        return {role: self._logits(role, chunk.hidden.states[role][chunk.positions]) for role in self.models}

    def _logits(self, role: Role, hidden_CH: torch.Tensor) -> torch.Tensor:
        model = self.models[role]
        with model.active():
            return model.logits(hidden_CH).to(self.device)

    def _require_finite_states(self, hidden: Hidden) -> None:
        if hidden.finite is not None:
            (finite,) = hidden.finite.wait()
            require_finite_where(finite.tolist(), hidden.states, self.models, hidden.batch)

    @torch.no_grad()
    def _require_finite(self, log_partition: Mapping[Role, np.ndarray], chunk: _Part) -> None:
        for role, partition_C in log_partition.items():
            bad = np.flatnonzero(~np.isfinite(partition_C))
            if not len(bad):
                continue
            position = chunk.positions.start + int(bad[0])
            logits_V = self._logits(role, chunk.hidden.states[role][position : position + 1])[0]
            logit = logits_V[~logits_V.isfinite()][0].item()
            batch = chunk.hidden.batch
            row_N, token_N = places(batch)
            raise NonFiniteLogits(
                f"{role}: expected finite logits, got {logit} for sample {batch[row_N[position]].sample_id} "
                f"at token {token_N[position]}{remedy(self.models[role].dtype)}"
            )


@torch.no_grad()
def hidden_states(model: RoleModel, batch: Batch, *, share_prompts: bool = False) -> torch.Tensor:
    """The model's hidden states, (N, H), at the token before each response token, which predicts it."""
    return packed_states(model, pack(batch, share_prompts=share_prompts))


@torch.no_grad()
def packed_states(model: RoleModel, packed: Packed) -> torch.Tensor:
    """The same for a batch that is packed."""
    with model.active():
        given = (packed.input_ids, packed.attention_mask, packed.position_ids)
        hidden_BTH = model.hidden(*given) if packed.lengths is None else model.hidden(*given, packed.lengths)
    return hidden_BTH.flatten(0, 1)[packed.places.to(hidden_BTH.device)]
