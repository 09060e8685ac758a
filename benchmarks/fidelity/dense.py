"""Full-vocabulary log-probs of a few response positions under the three models: the reference of all comparisons.

Dimensions: N positions, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from precompute.models.folders import check_vocabularies, load_models, load_tokenizer
from precompute.models.role_model import RoleModel
from precompute.scoring.score import Scorer
from precompute.tokens.corpus import load_corpus
from precompute.tokens.tokenized import TokenizedResponse
from shards.format.nodes import StrengthNodes
from shards.format.schema import ROLES, Pair, Role
from shards.modelfiles.find import resolve
from shards.spread import spread

PAIRS = (Pair("dpo", "reverse"), Pair("reference", "reference"))
NODES = StrengthNodes()
BATCH_ROWS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """logprobs: role -> (N, V) float32, nats; next_ids: the actual next tokens, (N,)."""

    logprobs: Mapping[Role, torch.Tensor]
    next_ids: torch.Tensor

    def __len__(self) -> int:
        return len(self.next_ids)

    @property
    def vocabulary_size(self) -> int:
        return self.logprobs["dpo"].shape[1]

    def take(self, index: torch.Tensor | slice) -> "Dense":
        """Some of the positions."""
        return Dense(logprobs={r: l_NV[index] for r, l_NV in self.logprobs.items()}, next_ids=self.next_ids[index])

    def entropy(self) -> torch.Tensor:
        """Of the reference, (N,), nats."""
        reference_NV = self.logprobs["reference"]
        return -(reference_NV.exp() * reference_NV).sum(-1)


def read_rows(folders: Mapping[Role, Path], data: str, *, rows: int, max_length: int) -> list[TokenizedResponse]:
    """Chosen responses, spread evenly over the data."""
    tokenizer = load_tokenizer(resolve(str(folders["reference"])))
    corpus = load_corpus(data, tokenizer=tokenizer, max_length=max_length, progress=False)
    return [corpus.responses[i] for i in spread(len(corpus.responses), rows)]


def load_roles(folders: Mapping[Role, Path], dtype: str, **kwargs: Any) -> dict[Role, RoleModel]:
    """On the CPU. kwargs: of `load_models`."""
    found = {role: resolve(str(folders[role])) for role in ROLES if role in folders}
    vocabulary = check_vocabularies({role: load_tokenizer(folder) for role, folder in found.items()})
    return load_models(found, max(vocabulary.values()) + 1, dtype=dtype, device="cpu", **kwargs)


def score(models: Mapping[Role, RoleModel], rows: Sequence[TokenizedResponse], positions: int) -> Dense:
    """Up to `positions` positions, evenly spread over those of the rows."""
    device = torch.device("cpu")
    scorer = Scorer(models=models, pairs=PAIRS, nodes=NODES, chunk_positions=128, device=device)
    total = sum(int(row.loss_mask.sum()) for row in rows)
    wanted = torch.linspace(0, total - 1, min(positions, total)).round().long()
    kept, ids, first = {role: [] for role in models}, [], 0
    for chunks in scorer.chunks([rows[start : start + BATCH_ROWS] for start in range(0, len(rows), BATCH_ROWS)]):
        for logprobs, next_ids_C in chunks:
            here = wanted[(wanted >= first) & (wanted < first + len(next_ids_C))] - first
            first += len(next_ids_C)
            ids.append(next_ids_C[here])
            for role, l_CV in logprobs.items():
                kept[role].append(l_CV[here])
    return Dense(logprobs={role: torch.cat(parts) for role, parts in kept.items()}, next_ids=torch.cat(ids))
