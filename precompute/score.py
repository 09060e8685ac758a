"""Forward passes: tokenised responses -> log-probs at response positions only, in chunks, never a whole (T, V) tensor.

Dimensions: B responses of a batch, T tokens, N response positions of the batch, C positions of a chunk, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from precompute.bits import log_partitions
from precompute.models import RoleModel
from precompute.support import SupportRule, best_log_scores, next_logprob, summarise
from precompute.tokenize import TokenizedResponse
from shards.errors import NonFiniteLogits
from shards.nodes import StrengthNodes
from shards.schema import Pair, Role
from shards.scores import Response, Scores, concatenate

Row = TokenizedResponse | Response
"""What is run through the models: tokens with a mask, out of data or out of a cache."""
Batch = Sequence[Row]
Chunk = tuple[dict[Role, torch.Tensor], torch.Tensor]
"""Log-probs of all roles, (C, V) float32, and the actual next ids, (C,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """Scores batches of responses with the models of all roles. Deterministic for a given batch.

    one_at_a_time: a model is on the device only while its hidden states of all batches of a call are computed. These
    wait in the host's memory, H values of the body's dtype for each role and response position: so a call should get
    the batches of a shard, not of a data set. The values are the same.

    Raises NonFiniteLogits naming role, sample and position.
    """

    models: Mapping[Role, RoleModel]
    pairs: Sequence[Pair]
    nodes: StrengthNodes
    chunk_positions: int
    device: torch.device
    one_at_a_time: bool = False

    def score(self, batches: Sequence[Batch], rule: SupportRule) -> Iterator[list[Scores]]:
        """The scores of each response, batch after batch."""
        for batch, chunks in zip(batches, self.chunks(batches), strict=True):
            joined = concatenate(
                [
                    summarise(logprobs, next_ids_C, rule=rule, pairs=self.pairs, nodes=self.nodes)
                    for logprobs, next_ids_C in chunks
                ]
            )
            yield [joined.slice(start, stop) for start, stop in _row_ends(batch)]

    def next_logprobs(self, batches: Sequence[Batch]) -> Iterator[list[dict[Role, np.ndarray]]]:
        """The log-probs of each response's own tokens, role -> (N,), without the work of choosing what is kept."""
        for batch, chunks in zip(batches, self.chunks(batches), strict=True):
            parts = [{role: next_logprob(l_CV, next_C) for role, l_CV in found.items()} for found, next_C in chunks]
            joined = {role: np.concatenate([part[role] for part in parts]) for role in self.models}
            yield [{role: l_N[start:stop] for role, l_N in joined.items()} for start, stop in _row_ends(batch)]

    def ranked_scores(self, batches: Sequence[Batch], highest: int) -> Iterator[np.ndarray]:
        """Logs of the best `highest` token scores of every position, falling, (N, highest); for the threshold."""
        for chunks in self.chunks(batches):
            yield np.concatenate(
                [best_log_scores(logprobs, highest, pairs=self.pairs, nodes=self.nodes) for logprobs, _ in chunks]
            )

    def chunks(self, batches: Sequence[Batch]) -> Iterator[Iterator[Chunk]]:
        """Of each batch, its chunks: log-probs of all roles and the actual next ids, position after position."""
        for batch, hidden in zip(batches, self._hidden(batches), strict=True):
            yield self._chunks(batch, hidden)

    def _hidden(self, batches: Sequence[Batch]) -> Iterator[dict[Role, torch.Tensor]]:
        """Of each batch, role -> hidden states (N, H) that predict its response tokens."""
        if not self.one_at_a_time:
            for batch in batches:
                yield {role: hidden_states(model, batch) for role, model in self.models.items()}
            return
        waiting: list[dict[Role, torch.Tensor]] = [{} for _ in batches]
        for role, model in self.models.items():
            with model.on(self.device):
                for batch, found in zip(batches, waiting, strict=True):
                    found[role] = hidden_states(model, batch).cpu()
        while waiting:
            yield waiting.pop(0)

    @torch.no_grad()
    def _chunks(self, batch: Batch, hidden: Mapping[Role, torch.Tensor]) -> Iterator[Chunk]:
        row_N, token_N = _places(batch)
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

    @staticmethod
    def _require_finite(
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
            f"at token {token_C[first]}"
        )


@torch.no_grad()
def hidden_states(model: RoleModel, batch: Batch) -> torch.Tensor:
    """The model's hidden states, (N, H), at the token before each response token, which predicts it."""
    row_N, token_N = _places(batch)
    with model.active():
        return model.hidden(*pad(batch))[row_N, token_N - 1]


def _places(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """(row in the batch, token in the row) of every response token, (N,) each."""
    tokens = [np.flatnonzero(row.loss_mask) for row in batch]
    return np.repeat(np.arange(len(batch)), [len(found) for found in tokens]), np.concatenate(tokens)


def _row_ends(batch: Batch) -> Iterator[tuple[int, int]]:
    """Of each row, the first of its positions among the batch's and the one behind its last."""
    return pairwise(np.cumsum([0, *(int(row.loss_mask.sum()) for row in batch)]).tolist())


def pad(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded input ids and attention mask, (B, T) int64. The padding id is never attended to."""
    longest = max(len(row.input_ids) for row in batch)
    input_ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
    attention_mask_BT = torch.zeros_like(input_ids_BT)
    for i, row in enumerate(batch):
        input_ids_BT[i, : len(row.input_ids)] = torch.from_numpy(row.input_ids.astype(np.int64))
        attention_mask_BT[i, : len(row.input_ids)] = 1
    return input_ids_BT, attention_mask_BT


def batches_by_length(rows: Sequence[Row], batch_tokens: int) -> list[list[int]]:
    """Indices of `rows` in batches of similar length, the longest first, each within the budget of padded tokens.

    A row that is longer than the budget is a batch of its own.
    """
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i].input_ids), i))
    batches: list[list[int]] = []
    for i in order:
        longest = len(rows[batches[-1][0]].input_ids) if batches else 0
        if batches and longest * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
