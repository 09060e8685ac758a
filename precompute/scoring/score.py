"""Scorer: forward passes, and log-probs at response positions only, in chunks, never a whole (T, V) tensor.

Dimensions: B responses of a batch, T tokens, N response positions of the batch, C positions of a chunk, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from precompute.models.role_model import RoleModel
from precompute.scoring.packing import pack, places, row_ends
from precompute.scoring.pending import Pending
from precompute.scoring.support import SupportRule, next_logprob
from precompute.scoring.vocabulary import Vocabulary, normalised_, vocabulary
from precompute.tokens.tokenized import Row
from shards.cli.device import Kernels
from shards.errors import ModelError, NonFiniteLogits, first_line
from shards.format.nodes import StrengthNodes
from shards.format.schema import Pair, Role
from shards.format.scores import Scores, concatenate

Batch = Sequence[Row]
PACKING_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}
"""Largest distance of two hidden states that rounding explains, relative to their length, by the body's dtype."""
Chunk = tuple[Mapping[Role, torch.Tensor], torch.Tensor]
"""Log-probs (or logits) of all roles, (C, V) float32, and the actual next ids, (C,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """Scores batches of responses with the models of all roles. Deterministic for a given batch.

    one_at_a_time: a model is on the device only while it computes the hidden states of all batches of a call. These
    wait in host memory: H values of the body's dtype for each role and response position. So pass the batches of a
    shard, not of a data set. The values are the same.

    share_prompts: neighbours of one pair in a batch share one prompt (`packing`); the values are the same up to
    rounding, for models that pass `require_shared_prompts`.

    Raises NonFiniteLogits, naming role, sample and position.
    """

    models: Mapping[Role, RoleModel]
    pairs: Sequence[Pair]
    nodes: StrengthNodes
    chunk_positions: int
    device: torch.device
    one_at_a_time: bool = False
    share_prompts: bool = False
    kernels: Kernels = "torch"

    @property
    def vocabulary(self) -> Vocabulary:
        """What computes over the whole vocabulary."""
        return vocabulary(self.kernels, self.pairs, self.nodes)

    def score(self, batches: Sequence[Batch], rule: SupportRule) -> Iterator[list[Scores]]:
        """The scores of each response, batch after batch."""
        for batch, chunks in zip(batches, self._logits(batches), strict=True):
            pending = (self.vocabulary.summarise(logits, next_ids_C, rule) for logits, next_ids_C in chunks)
            joined = concatenate(list(self._fetched(pending, batch)))
            yield [joined.slice(start, stop) for start, stop in row_ends(batch)]

    def _fetched(self, pending: Iterator[Pending], batch: Batch) -> Iterator[Scores]:
        """The scores of each chunk, fetched while the device already works on the next one."""
        start, part = 0, next(pending, None)
        while part is not None:
            after = next(pending, None)
            self._require_finite(part.partitions, batch, start)
            scores = part.fetch()
            yield scores
            start, part = start + scores.num_positions, after

    def next_logprobs(self, batches: Sequence[Batch]) -> Iterator[list[dict[Role, np.ndarray]]]:
        """The log-probs of each response's own tokens, role -> (N,), without choosing the kept tokens."""
        for batch, chunks in zip(batches, self.chunks(batches), strict=True):
            parts = [{role: next_logprob(l_CV, next_C) for role, l_CV in found.items()} for found, next_C in chunks]
            joined = {role: np.concatenate([part[role] for part in parts]) for role in self.models}
            yield [{role: l_N[start:stop] for role, l_N in joined.items()} for start, stop in row_ends(batch)]

    def ranked_scores(self, batches: Sequence[Batch], highest: int) -> Iterator[np.ndarray]:
        """Logs of the best `highest` token scores of every position, descending, (N, highest); for the threshold."""
        for batch, chunks in zip(batches, self._logits(batches), strict=True):
            start, parts = 0, []
            for logits, next_ids_C in chunks:
                partitions, ranked_CK = self.vocabulary.best_log_scores(logits, highest)
                self._require_finite(partitions, batch, start)
                start += len(next_ids_C)
                parts.append(ranked_CK)
            yield np.concatenate(parts)

    def chunks(self, batches: Sequence[Batch]) -> Iterator[Iterator[Chunk]]:
        """The chunks of each batch: log-probs of all roles and the actual next ids, position after position."""
        for batch, chunks in zip(batches, self._logits(batches), strict=True):
            yield self._normalised(chunks, batch)

    def _normalised(self, chunks: Iterator[Chunk], batch: Batch) -> Iterator[Chunk]:
        start = 0
        for logits, next_ids_C in chunks:
            partitions, logprobs = normalised_(logits)
            self._require_finite(partitions, batch, start)
            yield logprobs, next_ids_C
            start += len(next_ids_C)

    def _logits(self, batches: Sequence[Batch]) -> Iterator[Iterator[Chunk]]:
        """The same with logits in the place of log-probs."""
        for batch, hidden in zip(batches, self._hidden(batches), strict=True):
            yield self._chunks(batch, hidden)

    def _hidden(self, batches: Sequence[Batch]) -> Iterator[dict[Role, torch.Tensor]]:
        """For each batch, role -> hidden states (N, H) that predict its response tokens."""
        if not self.one_at_a_time:
            for batch in batches:
                yield {role: self._states(model, batch) for role, model in self.models.items()}
            return
        waiting: list[dict[Role, torch.Tensor]] = [{} for _ in batches]
        for role, model in self.models.items():
            with model.on(self.device):
                for batch, found in zip(batches, waiting, strict=True):
                    found[role] = self._states(model, batch).cpu()
        while waiting:
            yield waiting.pop(0)

    def _states(self, model: RoleModel, batch: Batch) -> torch.Tensor:
        return hidden_states(model, batch, share_prompts=self.share_prompts)

    @torch.no_grad()
    def _chunks(self, batch: Batch, hidden: Mapping[Role, torch.Tensor]) -> Iterator[Chunk]:
        next_ids = np.concatenate([row.input_ids[row.loss_mask] for row in batch])
        next_ids_N = torch.from_numpy(next_ids.astype(np.int64)).to(self.device)
        for start in range(0, len(next_ids_N), self.chunk_positions):
            chunk = slice(start, start + self.chunk_positions)
            logits = {}
            for role, model in self.models.items():
                with model.active():
                    logits[role] = model.logits(hidden[role][chunk]).to(self.device)
            yield logits, next_ids_N[chunk]

    @staticmethod
    def _require_finite(partitions: Mapping[Role, torch.Tensor], batch: Batch, start: int) -> None:
        """Raise NonFiniteLogits if a partition of the positions from `start` is not finite: then a logit is not."""
        values = torch.stack(list(partitions.values())).cpu().numpy()
        if np.isfinite(values).all():
            return
        role, values_C = next(
            found for found in zip(partitions, values, strict=True) if not np.isfinite(found[1]).all()
        )
        first = int(np.flatnonzero(~np.isfinite(values_C))[0])
        row_N, token_N = places(batch)
        raise NonFiniteLogits(
            f"{role}: expected finite logits, got {values_C[first]} for sample "
            f"{batch[row_N[start + first]].sample_id} at token {token_N[start + first]}"
        )


@torch.no_grad()
def hidden_states(model: RoleModel, batch: Batch, *, share_prompts: bool = False) -> torch.Tensor:
    """The model's hidden states, (N, H), at the token before each response token, which predicts it."""
    packed = pack(batch, share_prompts=share_prompts)
    with model.active():
        hidden_BTH = model.hidden(packed.input_ids, packed.attention_mask, packed.position_ids)
    return hidden_BTH[packed.rows, packed.tokens]


def require_shared_prompts(models: Mapping[Role, RoleModel], pair: Batch, longest: int) -> None:
    """Run a pair both ways through every body. Raises ModelError if the hidden states differ by more than rounding.

    They differ for layers that ignore a custom mask: state-space and linear attention, flash attention 2. pair: any
    pair, preferably the longest. longest: tokens of the longest of all rows; if it exceeds an attention window, it is
    refused without a test.
    """
    for role, model in models.items():
        if (window := model.window) is not None and longest > window:
            raise ModelError(
                f"{role}: expected rows of at most {window} tokens, its window of attention, with --share_prompts, got "
                f"one of {longest}; leave it out"
            )
        apart_NH = hidden_states(model, pair).float()
        try:
            shared_NH = hidden_states(model, pair, share_prompts=True).float()
        except (RuntimeError, TypeError, ValueError) as exc:
            raise ModelError(
                f"{role}: expected a body that takes a mask and positions of one's own, got {first_line(exc)}; leave "
                "--share_prompts out"
            ) from exc
        off = float(((shared_NH - apart_NH).norm(dim=-1) / apart_NH.norm(dim=-1)).max())
        if not off <= PACKING_TOLERANCE[model.dtype]:
            raise ModelError(
                f"{role}: expected the same hidden states with a shared prompt, got some {off:.1%} off in the pair of "
                f"{pair[0].sample_id}; leave --share_prompts out"
            )
