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


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """Scores batches of responses with the models of all roles. Deterministic for a given batch.

    Raises NonFiniteLogits naming role, sample and position.
    """

    models: Mapping[Role, RoleModel]
    pairs: Sequence[Pair]
    nodes: StrengthNodes
    chunk_positions: int
    device: torch.device

    def score(self, batch: Sequence[Row], rule: SupportRule) -> list[Scores]:
        """The scores of each response of the batch."""
        parts = [
            summarise(logprobs, next_ids_C, rule=rule, pairs=self.pairs, nodes=self.nodes)
            for logprobs, next_ids_C in self.chunks(batch)
        ]
        joined = concatenate(parts)
        return [joined.slice(start, stop) for start, stop in _row_ends(batch)]

    def next_logprobs(self, batch: Sequence[Row]) -> list[dict[Role, np.ndarray]]:
        """The log-probs of each response's own tokens, role -> (N,), without the work of choosing what is kept."""
        parts = [
            {role: next_logprob(l_CV, next_ids_C) for role, l_CV in logprobs.items()}
            for logprobs, next_ids_C in self.chunks(batch)
        ]
        joined = {role: np.concatenate([part[role] for part in parts]) for role in self.models}
        return [{role: l_N[start:stop] for role, l_N in joined.items()} for start, stop in _row_ends(batch)]

    def ranked_scores(self, batch: Sequence[Row], highest: int) -> np.ndarray:
        """Logs of the best `highest` token scores of every position, falling, (N, highest); for the threshold."""
        return np.concatenate(
            [
                best_log_scores(logprobs, highest, pairs=self.pairs, nodes=self.nodes)
                for logprobs, _ in self.chunks(batch)
            ]
        )

    @torch.no_grad()
    def chunks(self, batch: Sequence[Row]) -> Iterator[tuple[dict[Role, torch.Tensor], torch.Tensor]]:
        """Log-probs of all roles, (C, V) float32, and the actual next ids, (C,), position after position."""
        input_ids_BT, attention_mask_BT = pad(batch)
        row_N, token_N = np.concatenate(
            [(np.full(len(tokens), i), tokens) for i, tokens in enumerate(np.flatnonzero(r.loss_mask) for r in batch)],
            axis=1,
        )
        hidden = {}
        for role, model in self.models.items():
            with model.active():
                # the hidden state of the token before predicts a response token
                hidden[role] = model.hidden(input_ids_BT, attention_mask_BT)[row_N, token_N - 1]
        next_ids_N = input_ids_BT[row_N, token_N].to(self.device)
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
        batch: Sequence[Row],
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


def _row_ends(batch: Sequence[Row]) -> Iterator[tuple[int, int]]:
    """Of each row, the first of its positions among the batch's and the one behind its last."""
    return pairwise(np.cumsum([0, *(int(row.loss_mask.sum()) for row in batch)]).tolist())


def pad(batch: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
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
