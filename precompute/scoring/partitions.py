"""Arithmetic over the whole vocabulary: D_t, teachers and log-sum-exps, in base 2, in blocks. Pure.

Each pass over (C, V) takes time. So log-probs are in *bits* here (base 2: on a CPU exp2 costs a quarter of exp),
results are written in place, and a CPU works in blocks of positions that fit into its cache.

Dimensions: C positions, V vocabulary, J strength nodes, S strengths.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from shards.format.nodes import StrengthNodes, adaptive_strength
from shards.format.schema import NEGATIVES, Pair, Role

Logits = Mapping[Role, torch.Tensor]
Logprobs = Mapping[Role, torch.Tensor]

LOG2_E = math.log2(math.e)
LN_2 = math.log(2)
SMALLEST_SUM = 2.0**-60
"""For exponentials under a shift that is not their maximum; a smaller sum is recomputed under its own maximum."""
BLOCK_VALUES = 1 << 19
"""Vocabulary entries, over positions, per block on a CPU: an array of them is 2 MiB of float32. Smaller blocks are too
small to be shared by threads, larger ones exceed the cache (docs/performance.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Some positions under every model.

    logprobs    role -> (C, V), full vocabulary, nats
    bits        the same in base 2
    distances   negative -> D_t, (C,): sum over v of |p_dpo(v) - p_negative(v)|, in [0, 2]; not halved
    """

    logprobs: Logprobs
    bits: Logprobs
    distances: Logprobs

    @classmethod
    def of(cls, logprobs: Logprobs) -> "Block":
        bits = {role: l_CV * LOG2_E for role, l_CV in logprobs.items()}
        dpo_CV = bits["dpo"].exp2()
        distances = {n: bits[n].exp2().sub_(dpo_CV).abs_().sum(-1) for n in NEGATIVES if n in bits}
        return cls(logprobs=logprobs, bits=bits, distances=distances)

    def score_strengths(self, pairs: Sequence[Pair], nodes: StrengthNodes) -> dict[Pair, torch.Tensor]:
        """Strengths at which tokens are scored, pair -> (C, S): w = gain D_t + 1e-3 for the first gain node above zero
        and the last but one (2 and 20 by default; one in between makes no measurable difference).

        The nodes' constant strengths are not used: where D_t is small, an adaptive teacher is weaker than all of them,
        and its loss is weighted with beta / w_t.
        """
        gains = (nodes.gains[1], nodes.gains[-2])
        return {
            pair: torch.stack([adaptive_strength(self.distances[pair.negative], gain) for gain in gains], -1)
            for pair in pairs
        }

    def node_strengths(self, pairs: Sequence[Pair], nodes: StrengthNodes) -> dict[Pair, torch.Tensor]:
        """w_j(t) of every pair, (C, J), on the device and in the dtype of the distances."""
        at = {n: _node_strengths(distance_C, nodes) for n, distance_C in self.distances.items()}
        return {pair: at[pair.negative] for pair in pairs}


def blocks(logprobs: Logprobs) -> Iterator[Block]:
    """The positions of a chunk in blocks for a CPU; all at once on another device."""
    size = block_size(logprobs["dpo"])
    for parts in zip(*(l_CV.split(size) for l_CV in logprobs.values()), strict=True):
        yield Block.of(dict(zip(logprobs, parts, strict=True)))


def block_size(values_CV: torch.Tensor) -> int:
    """Positions per block."""
    if values_CV.device.type != "cpu":
        return len(values_CV)
    return max(1, BLOCK_VALUES // values_CV.shape[1])


def _node_strengths(distance_C: torch.Tensor, nodes: StrengthNodes) -> torch.Tensor:
    """`StrengthNodes.at` on the distances' own device, which the host need not wait for, and in their dtype, (C, J)."""
    if distance_C.device.type == "cpu":
        return torch.from_numpy(nodes.at(distance_C.numpy())).to(distance_C)
    gains_J, strengths_J = distance_C.new_tensor(nodes.gains), distance_C.new_tensor(nodes.strengths)
    strengths_CJ = torch.maximum(adaptive_strength(distance_C[:, None], gains_J), strengths_J)
    return torch.cat([torch.zeros_like(strengths_CJ[:, :1]), strengths_CJ[:, 1:]], dim=1)


def l1_distances(logprobs: Logprobs) -> Logprobs:
    """D_t for every available negative, (C,), from log-probs in nats."""
    return Block.of(logprobs).distances


def teachers(
    anchor_CV: torch.Tensor, bits: Logprobs, pair: Pair, strengths_CS: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(strength (C, 1), teacher logits (C, V) in bits), one after the other; the caller may overwrite the logits.

    Computes `shards.teacher.spec.teacher_logits` in a single pass.
    """
    difference_CV = bits["dpo"] - bits[pair.negative]
    teacher_CV = torch.empty_like(difference_CV)
    for strength_C1 in strengths_CS.split(1, dim=1):
        yield strength_C1, torch.addcmul(anchor_CV, strength_C1, difference_CV, out=teacher_CV)


def log_partitions(logits_CV: torch.Tensor) -> torch.Tensor:
    """Log of the sum of exp(logits), (C, 1), nats; if a logit is not finite, that logit or NaN.

    log_softmax is not used: on a CPU its running sum has an error of 1e-6, always with the same sign.
    """
    return torch.cat([_log_partition(block_CV) for block_CV in logits_CV.split(block_size(logits_CV))])


def _log_partition(logits_CV: torch.Tensor) -> torch.Tensor:
    bits_CV = logits_CV * LOG2_E
    peak_C1, sum_C1 = exp2_sum(bits_CV, out=bits_CV)
    found_C1 = sum_C1.log2().add_(peak_C1).mul_(LN_2)
    lowest_C1 = logits_CV.amin(-1, keepdim=True)
    return found_C1.where(lowest_C1.isfinite(), lowest_C1).where(peak_C1 < torch.inf, peak_C1)


def exp2_sum(bits_CV: torch.Tensor, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(maximum, sum of the values in `out`), (C, 1) each; 2^(value - maximum) is written into `out`."""
    peak_C1 = bits_CV.amax(-1, keepdim=True)
    peak_C1.masked_fill_(peak_C1.isneginf(), 0.0)  # an empty row: its sum is 0
    torch.sub(bits_CV, peak_C1, out=out).exp2_()
    return peak_C1, out.sum(-1, keepdim=True)


def logsumexp(bits_CV: torch.Tensor, work_CV: torch.Tensor) -> torch.Tensor:
    """Log of the sum of the exponentials, (C, 1), nats; -inf for an empty row. Overwrites work_CV."""
    peak_C1, sum_C1 = exp2_sum(bits_CV, out=work_CV)
    return sum_C1.log2().add_(peak_C1).mul_(LN_2)


def logsumexps_along(start_CV: torch.Tensor, step_CV: torch.Tensor, strengths_CS: torch.Tensor) -> torch.Tensor:
    """Logs of the sums of exponentials of start + w step, nats, (C, S), at ascending strengths w above 0.

    The maximum over the entries is convex in w, so it is below the chord from 0 to the last strength. That chord is
    linear in w: subtracted from start and step once, it serves as the shift for every strength, without a search for
    the maximum and a subtraction for each. If it is so far above that a sum is tiny, that sum is recomputed. -inf if
    all of start is -inf. Overwrites step_CV.
    """
    last_C1 = strengths_CS[:, -1:]
    first_peak_C1 = start_CV.amax(-1, keepdim=True)
    empty_C1 = first_peak_C1.isneginf()
    work_CV = torch.addcmul(start_CV, last_C1, step_CV)
    rise_C1 = ((work_CV.amax(-1, keepdim=True) - first_peak_C1) / last_C1).masked_fill_(empty_C1, 0.0)
    first_peak_C1.masked_fill_(empty_C1, 0.0)
    below_CV, step_CV = start_CV - first_peak_C1, step_CV.sub_(rise_C1)
    sums = [
        torch.addcmul(below_CV, strength_C1, step_CV, out=work_CV).exp2_().sum(-1, keepdim=True)
        for strength_C1 in strengths_CS.split(1, dim=1)
    ]
    sum_CS = torch.cat(sums, dim=-1)
    log_CS = sum_CS.log2()
    row, column = ((sum_CS < SMALLEST_SUM) & ~empty_C1).nonzero(as_tuple=True)
    if len(row):
        again = torch.addcmul(below_CV[row], strengths_CS[row, column][:, None], step_CV[row])
        log_CS[row, column] = logsumexp(again, again)[:, 0] / LN_2
    return log_CS.add_(first_peak_C1).addcmul_(strengths_CS, rise_C1).mul_(LN_2)
