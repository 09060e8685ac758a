"""Scorer: forward passes, and log-probs at response positions only, in chunks, never a whole (T, V) tensor.

Dimensions: B responses of a batch, T tokens, N response positions of the batch, C positions of a chunk, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from precompute.models.role_model import RoleModel
from precompute.scoring.finite import require_finite_states
from precompute.scoring.packing import pack, places, row_ends
from precompute.scoring.partitions import log_partitions
from precompute.scoring.support import SupportRule, best_log_scores, next_logprob, summarise
from precompute.tokens.tokenized import Row
from shards.errors import ModelError, NonFiniteLogits, first_line
from shards.format.nodes import StrengthNodes
from shards.format.schema import Pair, Role
from shards.format.scores import Scores, concatenate
from shards.modelfiles.precision import remedy, spacing

Batch = Sequence[Row]
SAME_STATES, SPACINGS_APART = 1e-3, 6.4
"""Largest distance of two hidden states that rounding explains, relative to their length: the first in float32, and so
many spacings of the body's dtype (0.05 in bfloat16)."""
Chunk = tuple[dict[Role, torch.Tensor], torch.Tensor]
"""Log-probs of all roles, (C, V) float32, and the actual next ids, (C,)."""


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

    def score(self, batches: Sequence[Batch], rule: SupportRule) -> Iterator[list[Scores]]:
        """The scores of each response, batch after batch."""
        for batch, chunks in zip(batches, self.chunks(batches), strict=True):
            joined = concatenate(
                [
                    summarise(logprobs, next_ids_C, rule=rule, pairs=self.pairs, nodes=self.nodes)
                    for logprobs, next_ids_C in chunks
                ]
            )
            yield [joined.slice(start, stop) for start, stop in row_ends(batch)]

    def next_logprobs(self, batches: Sequence[Batch]) -> Iterator[list[dict[Role, np.ndarray]]]:
        """The log-probs of each response's own tokens, role -> (N,), without choosing the kept tokens."""
        for batch, chunks in zip(batches, self.chunks(batches), strict=True):
            parts = [{role: next_logprob(l_CV, next_C) for role, l_CV in found.items()} for found, next_C in chunks]
            joined = {role: np.concatenate([part[role] for part in parts]) for role in self.models}
            yield [{role: l_N[start:stop] for role, l_N in joined.items()} for start, stop in row_ends(batch)]

    def ranked_scores(self, batches: Sequence[Batch], highest: int) -> Iterator[np.ndarray]:
        """Logs of the best `highest` token scores of every position, descending, (N, highest); for the threshold."""
        for chunks in self.chunks(batches):
            yield np.concatenate(
                [best_log_scores(logprobs, highest, pairs=self.pairs, nodes=self.nodes) for logprobs, _ in chunks]
            )

    def chunks(self, batches: Sequence[Batch]) -> Iterator[Iterator[Chunk]]:
        """The chunks of each batch: log-probs of all roles and the actual next ids, position after position."""
        for batch, hidden in zip(batches, self._hidden(batches), strict=True):
            yield self._chunks(batch, hidden)

    def _hidden(self, batches: Sequence[Batch]) -> Iterator[dict[Role, torch.Tensor]]:
        """For each batch, role -> hidden states (N, H) that predict its response tokens."""
        if not self.one_at_a_time:
            for batch in batches:
                states = {role: self._states(model, batch) for role, model in self.models.items()}
                require_finite_states(states, self.models, batch)
                yield states
            return
        waiting: list[dict[Role, torch.Tensor]] = [{} for _ in batches]
        for role, model in self.models.items():
            with model.on(self.device):
                for batch, found in zip(batches, waiting, strict=True):
                    found[role] = self._states(model, batch).cpu()
                    require_finite_states({role: found[role]}, self.models, batch)
        while waiting:
            yield waiting.pop(0)

    def _states(self, model: RoleModel, batch: Batch) -> torch.Tensor:
        return hidden_states(model, batch, share_prompts=self.share_prompts)

    @torch.no_grad()
    def _chunks(self, batch: Batch, hidden: Mapping[Role, torch.Tensor]) -> Iterator[Chunk]:
        row_N, token_N = places(batch)
        next_ids = np.concatenate([row.input_ids[row.loss_mask] for row in batch])
        next_ids_N = torch.from_numpy(next_ids.astype(np.int64)).to(self.device)
        for start in range(0, len(row_N), self.chunk_positions):
            chunk = slice(start, start + self.chunk_positions)
            logprobs = {}
            for role, model in self.models.items():
                with model.active():
                    logits_CV = model.logits(hidden[role][chunk]).to(self.device)
                partition_C1 = log_partitions(logits_CV)
                self._require_finite(partition_C1, logits_CV, role, batch, row_N[chunk], token_N[chunk])
                logprobs[role] = logits_CV.sub_(partition_C1)
            yield logprobs, next_ids_N[chunk]

    def _require_finite(
        self,
        partition_C1: torch.Tensor,
        logits_CV: torch.Tensor,
        role: Role,
        batch: Batch,
        row_C: np.ndarray,
        token_C: np.ndarray,
    ) -> None:
        bad_C = ~partition_C1[:, 0].isfinite()
        if not bool(bad_C.any()):
            return
        first = int(bad_C.nonzero()[0, 0])
        logit = logits_CV[first][~logits_CV[first].isfinite()][0].item()
        raise NonFiniteLogits(
            f"{role}: expected finite logits, got {logit} for sample {batch[row_C[first]].sample_id} "
            f"at token {token_C[first]}{remedy(self.models[role].dtype)}"
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
        apart_NH = hidden_states(model, pair)
        require_finite_states({role: apart_NH}, models, pair)
        try:
            shared_NH = hidden_states(model, pair, share_prompts=True)
        except (RuntimeError, TypeError, ValueError) as exc:
            raise ModelError(
                f"{role}: expected a body that takes a mask and positions of one's own, got {first_line(exc)}; leave "
                "--share_prompts out"
            ) from exc
        length_N = apart_NH.float().norm(dim=-1)
        off = float(((shared_NH.float() - apart_NH.float()).norm(dim=-1) / length_N).max())
        if not off <= max(SAME_STATES, SPACINGS_APART * spacing(model.dtype)):
            raise ModelError(
                f"{role}: expected the same hidden states with a shared prompt, got some {off:.1%} off in the pair of "
                f"{pair[0].sample_id}; leave --share_prompts out"
            )
