"""Chooses the tokens to keep at each position, and summarises the rest. Pure functions of log-probs.

Dimensions: C positions of a chunk, V vocabulary, J strength nodes, S strengths at which tokens are scored, K most
tokens kept at a position, M kept in all.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from precompute.feeding.transfer import Transfer
from precompute.scoring.device_scores import DeviceScores
from precompute.scoring.partitions import (
    LN_2,
    Block,
    Logprobs,
    block_size,
    blocks,
    exp2_sum,
    logsumexp,
    logsumexps_along,
    teachers,
)
from shards.format.nodes import StrengthNodes
from shards.format.schema import Pair
from shards.format.scores import Scores, concatenate


@dataclass(frozen=True, slots=True, kw_only=True)
class SupportRule:
    """Keeps the tokens with a log score above `log_threshold`, but at least the best `lowest` and at most the best
    `highest`. Without a threshold, keeps exactly the best `highest`.
    """

    lowest: int
    highest: int
    log_threshold: float | None

    def select(self, scores_CV: torch.Tensor) -> torch.Tensor:
        """Which tokens to keep, (C, V) bool, from their scores (not logs)."""
        if self.log_threshold is None:
            return _best(scores_CV, self.highest)
        kept_CV = scores_CV > math.exp(self.log_threshold)
        count_C = kept_CV.sum(-1)
        for wrong_C, size in ((count_C < self.lowest, self.lowest), (count_C > self.highest, self.highest)):
            rows = wrong_C.nonzero()[:, 0]
            if len(rows):
                kept_CV[rows] = _best(scores_CV[rows], size)
        return kept_CV


def token_scores(block: Block, strengths: Mapping[Pair, torch.Tensor]) -> torch.Tensor:
    """The loss's error without a token, (C, V): the maximum, over pairs and their strengths w (C, S), of

        q_w(v) = max(p_ref(v), p*_w(v)) (1/2 + |log p_ref(v) - log p*_w(v)| / w)

    The gradient of the reverse KL at v is lambda p_s(v) (log p_s(v) - log p*(v) - KL), lambda = beta / w, and the
    student p_s is between the reference and the teacher. The half is for likely tokens on which the two agree
    (docs/decisions/0008-support-score.md). No score is below the smallest normal number, so that all have a log.
    """
    bits = block.bits
    reference_CV, reference_prob_CV = bits["reference"], bits["reference"].exp2()
    best_CV = torch.full_like(reference_CV, torch.finfo(reference_CV.dtype).tiny)
    half, ratio_CV = best_CV.new_tensor(0.5), torch.empty_like(best_CV)
    for pair, strengths_CS in strengths.items():
        for strength_C1, teacher_CV in teachers(bits[pair.anchor], bits, pair, strengths_CS):
            torch.sub(reference_CV, teacher_CV, out=ratio_CV)
            peak_C1, sum_C1 = exp2_sum(teacher_CV, out=teacher_CV)
            ratio_CV.add_(peak_C1 + sum_C1.log2()).abs_()
            torch.addcmul(half, ratio_CV, LN_2 / strength_C1, out=ratio_CV)
            torch.maximum(teacher_CV.div_(sum_C1), reference_prob_CV, out=teacher_CV)
            torch.maximum(best_CV, teacher_CV.mul_(ratio_CV), out=best_CV)
    return best_CV


def best_log_scores(logprobs: Logprobs, highest: int, *, pairs: Sequence[Pair], nodes: StrengthNodes) -> np.ndarray:
    """Logs of the best `highest` scores of each position, descending, (C, highest); for setting the threshold."""
    scores = (token_scores(block, block.score_strengths(pairs, nodes)) for block in blocks(logprobs))
    return np.concatenate([_numpy(scores_CV.topk(highest, dim=-1).values.log()) for scores_CV in scores])


def summarise(
    logprobs: Logprobs, next_ids_C: torch.Tensor, *, rule: SupportRule, pairs: Sequence[Pair], nodes: StrengthNodes
) -> Scores:
    """All stored values for a chunk of positions, on the host. See `summarised`."""
    found = summarised(logprobs, next_ids_C, rule=rule, pairs=pairs, nodes=nodes)
    return concatenate([scores.fetch(Transfer()).wait().scores for scores in found])


def summarised(
    logprobs: Logprobs, next_ids_C: torch.Tensor, *, rule: SupportRule, pairs: Sequence[Pair], nodes: StrengthNodes
) -> Iterator[DeviceScores]:
    """All stored values for a chunk of positions, block after block, on the device of the log-probs.

    logprobs: role -> (C, V), full vocabulary, nats; next_ids_C: the actual next tokens. Values keep their dtype.
    """
    next_ids = next_ids_C.split(block_size(logprobs["dpo"]))
    for block, block_next_ids_C in zip(blocks(logprobs), next_ids, strict=True):
        kept_CV = rule.select(token_scores(block, block.score_strengths(pairs, nodes)))
        yield device_values(block, block_next_ids_C, kept_CV, pairs=pairs, nodes=nodes)


def values_on(
    block: Block, next_ids_C: torch.Tensor, kept_CV: torch.Tensor, *, pairs: Sequence[Pair], nodes: StrengthNodes
) -> Scores:
    """The stored values of positions, for given kept tokens, (C, V) bool, on the host."""
    found = device_values(block, next_ids_C, kept_CV, pairs=pairs, nodes=nodes)
    return found.fetch(Transfer()).wait().scores


def device_values(
    block: Block, next_ids_C: torch.Tensor, kept_CV: torch.Tensor, *, pairs: Sequence[Pair], nodes: StrengthNodes
) -> DeviceScores:
    """The stored values of positions, for given kept tokens, (C, V) bool."""
    position_M, ids_M = kept_CV.nonzero(as_tuple=True)  # row-major: ids ascend inside a position
    outside = {
        role: l_CV.index_put((position_M, ids_M), l_CV.new_tensor(-torch.inf)) for role, l_CV in block.bits.items()
    }
    work_CV = torch.empty_like(block.bits["dpo"])
    live = block.logprobs
    return DeviceScores(
        support_count=torch.bincount(position_M, minlength=len(kept_CV)).int(),
        support_ids=ids_M.int(),
        logprobs={role: l_CV[position_M, ids_M] for role, l_CV in live.items()},
        next_logprob={role: l_CV.gather(1, next_ids_C[:, None])[:, 0] for role, l_CV in live.items()},
        tail_logprob={role: logsumexp(l_CV, work_CV)[:, 0] for role, l_CV in outside.items()},
        l1_distance=block.distances,
        tail_logpartition={
            pair: tail_logpartition(outside[pair.anchor], block.bits, pair, strengths_CJ[:, 1:])
            for pair, strengths_CJ in block.node_strengths(pairs, nodes).items()
        },
        log_partition={},
    )


def next_logprob(logprobs_CV: torch.Tensor, next_ids_C: torch.Tensor) -> np.ndarray:
    """Log-probs of the actual next tokens, (C,)."""
    return _numpy(logprobs_CV.gather(1, next_ids_C[:, None])[:, 0])


def tail_logpartition(outside_CV: torch.Tensor, bits: Logprobs, pair: Pair, strengths_CS: torch.Tensor) -> torch.Tensor:
    """log sum over v outside the support of exp(teacher logits), nats, at each of ascending strengths, (C, S).

    outside_CV: the anchor's log-probs in bits, -inf inside the support. Computed as a log-sum-exp, never log(1 - sum).
    """
    return logsumexps_along(outside_CV, bits["dpo"] - bits[pair.negative], strengths_CS)


def find_threshold(ranked_NK: np.ndarray, *, top_k: int, lowest: int) -> float:
    """The log threshold for which the mean number of kept tokens is closest to top_k from below.

    ranked_NK: the best scores of each sampled position, descending. The mean is a decreasing step function of the
    threshold. If even the lowest score keeps fewer (because of the cap), everything that the cap allows is kept.
    """

    def mean_count(threshold: float) -> float:
        return float(np.maximum((ranked_NK > threshold).sum(axis=1), lowest).mean())

    below, above = float(ranked_NK.min()) - 1.0, float(ranked_NK.max())
    if mean_count(below) <= top_k:
        return below
    for _ in range(60):
        middle = (below + above) / 2
        below, above = (middle, above) if mean_count(middle) > top_k else (below, middle)
    return above


def _best(scores_CV: torch.Tensor, size: int) -> torch.Tensor:
    """Which tokens are among the `size` best of their position, (C, V) bool."""
    best_CK = scores_CV.topk(size, dim=-1).indices
    return torch.zeros_like(scores_CV, dtype=torch.bool).scatter_(1, best_CK, True)


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().numpy()
