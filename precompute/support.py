"""Which tokens are kept at each position, and what is known of the rest. Pure functions of log-probs.

Dimensions: C positions of a chunk, V vocabulary, J strength nodes, K most tokens kept at a position, M kept in all.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from shards.nodes import StrengthNodes
from shards.schema import NEGATIVES, Pair, Role
from shards.scores import Scores
from shards.teacher import teacher_logits

Logprobs = Mapping[Role, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class SupportRule:
    """Keep the tokens whose score exceeds `log_threshold` (a log-prob), the best first, between lowest and highest.

    Without a threshold keep exactly `highest`.
    """

    lowest: int
    highest: int
    log_threshold: float | None

    def counts(self, ranked_CK: torch.Tensor) -> torch.Tensor:
        """K_t, (C,), from scores in falling order, the best `highest` of each position."""
        if self.log_threshold is None:
            return torch.full(ranked_CK.shape[:1], self.highest, device=ranked_CK.device)
        return (ranked_CK > self.log_threshold).sum(-1).clamp(self.lowest, self.highest)


def l1_distances(logprobs: Logprobs) -> dict[Role, torch.Tensor]:
    """D_t = sum over v of |p_dpo(v) - p_negative(v)| for every negative at hand, (C,), in [0, 2]; not halved."""
    dpo_CV = logprobs["dpo"].exp()
    return {n: logprobs[n].exp().sub_(dpo_CV).abs_().sum(-1) for n in NEGATIVES if n in logprobs}


def token_scores(logprobs: Logprobs, strengths: Mapping[Pair, torch.Tensor]) -> torch.Tensor:
    """Log of q(v) = max of p_ref(v) and of p*(v) at every node of every pair, (C, V).

    The student starts at the reference and reverse KL is weighted by the student: a teacher's own top-k is not enough.
    strengths: pair -> nodes (C, J), the first of them 0.
    """
    best_CV = logprobs["reference"].clone()
    for pair, nodes_CJ in strengths.items():
        torch.maximum(best_CV, logprobs[pair.anchor], out=best_CV)  # the teacher at w_0 = 0
        for logits_CV in _node_logits(logprobs[pair.anchor], logprobs, pair, nodes_CJ):
            logits_CV -= logits_CV.logsumexp(-1, keepdim=True)
            torch.maximum(best_CV, logits_CV, out=best_CV)
    return best_CV


def node_strengths(
    distances: Mapping[Role, torch.Tensor], pairs: Sequence[Pair], nodes: StrengthNodes, dtype: torch.dtype
) -> dict[Pair, torch.Tensor]:
    """w_j(t) of every pair, (C, J), on the device of the distances."""
    at = {n: torch.from_numpy(nodes.at(distance_C.cpu().numpy())) for n, distance_C in distances.items()}
    return {pair: at[pair.negative].to(distances[pair.negative].device, dtype) for pair in pairs}


def summarise(
    logprobs: Logprobs, next_ids_C: torch.Tensor, *, rule: SupportRule, pairs: Sequence[Pair], nodes: StrengthNodes
) -> Scores:
    """Everything that is stored about a chunk of positions.

    logprobs: role -> (C, V), full vocabulary; next_ids_C: the actual next tokens. Values keep the dtype of logprobs.
    """
    distances = l1_distances(logprobs)
    strengths = node_strengths(distances, pairs, nodes, logprobs["dpo"].dtype)
    ranked_CK, ids_CK = token_scores(logprobs, strengths).topk(rule.highest, dim=-1)
    count_C = rule.counts(ranked_CK)
    kept_CK = torch.arange(rule.highest, device=ids_CK.device) < count_C[:, None]
    vocabulary_size = logprobs["dpo"].shape[1]
    # unkept ids sort to the end, where the mask by count cuts them off
    ids_CK = torch.where(kept_CK, ids_CK, vocabulary_size).sort(dim=-1).values
    position_M, ids_M = kept_CK.nonzero()[:, 0], ids_CK[kept_CK]
    inside_CV = torch.zeros_like(logprobs["dpo"], dtype=torch.bool)
    inside_CV[position_M, ids_M] = True
    outside = {role: l_CV.masked_fill(inside_CV, -torch.inf) for role, l_CV in logprobs.items()}
    return Scores(
        support_count=_numpy(count_C.int()),
        support_ids=_numpy(ids_M.int()),
        logprobs={role: _numpy(l_CV[position_M, ids_M]) for role, l_CV in logprobs.items()},
        next_logprob={role: _numpy(l_CV.gather(1, next_ids_C[:, None])[:, 0]) for role, l_CV in logprobs.items()},
        tail_logprob={role: _numpy(l_CV.logsumexp(-1)) for role, l_CV in outside.items()},
        l1_distance={negative: _numpy(distance_C) for negative, distance_C in distances.items()},
        tail_logpartition={
            pair: _numpy(tail_logpartition(outside[pair.anchor], logprobs, pair, nodes_CJ))
            for pair, nodes_CJ in strengths.items()
        },
    )


def tail_logpartition(outside_CV: torch.Tensor, logprobs: Logprobs, pair: Pair, nodes_CJ: torch.Tensor) -> torch.Tensor:
    """log sum over v outside the support of exp(teacher logits) at the nodes above zero, (C, J - 1).

    outside_CV: the anchor's log-probs, -inf inside the support. A log-sum-exp over the tail, never log(1 - sum).
    """
    logits = _node_logits(outside_CV, logprobs, pair, nodes_CJ)
    return torch.stack([logits_CV.logsumexp(-1) for logits_CV in logits], dim=-1)


def find_threshold(ranked_NK: np.ndarray, *, top_k: int, lowest: int) -> float:
    """The log threshold with which the mean number of kept tokens comes closest to top_k from below.

    ranked_NK: the best scores of each sampled position, falling. The mean is a falling step function of the
    threshold; where even the lowest score keeps fewer (the cap binds), everything that the cap allows is kept.
    """

    def mean_count(threshold: float) -> float:
        return float(np.maximum((ranked_NK > threshold).sum(axis=1), lowest).mean())

    below, above = float(ranked_NK.min()) - 1.0, 0.0
    if mean_count(below) <= top_k:
        return below
    for _ in range(60):
        middle = (below + above) / 2
        below, above = (middle, above) if mean_count(middle) > top_k else (below, middle)
    return above


def _node_logits(
    anchor_CV: torch.Tensor, logprobs: Logprobs, pair: Pair, nodes_CJ: torch.Tensor
) -> Iterator[torch.Tensor]:
    """Teacher logits (C, V) at each node above zero, one after the other; the caller may write into them."""
    difference_CV = logprobs["dpo"] - logprobs[pair.negative]
    for strength_C1 in nodes_CJ[:, 1:].split(1, dim=1):
        yield teacher_logits(anchor_CV, difference_CV, strength_C1)


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().numpy()
