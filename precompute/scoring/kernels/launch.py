"""TritonVocabulary: launches the kernels for a chunk. Nothing here waits for the device.

Dimensions: C positions of a chunk, V vocabulary, J strength nodes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton

from precompute.scoring.device_scores import DeviceScores
from precompute.scoring.kernels.keep import keep_tokens, own_thresholds
from precompute.scoring.kernels.measure import measure
from precompute.scoring.kernels.pack import pack_tokens, write_scores
from precompute.scoring.partitions import Logits
from precompute.scoring.support import SupportRule
from shards.format.nodes import StrengthNodes
from shards.format.schema import NEGATIVES, ROLES, Pair, Role

NOBODY = -1
"""For `keep_tokens`: no position is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonVocabulary:
    """The kernels, for the given pairs and nodes. The logits of a role need contiguous rows, at any distance.

    tile_rows, tile_lanes, num_warps   the shape of a tile, and the warps of a program (0012-vocabulary-kernels.md)
    """

    pairs: tuple[Pair, ...]
    nodes: StrengthNodes
    tile_rows: int = 8
    tile_lanes: int = 512
    num_warps: int = 16

    def summarise(self, logits: Logits, next_ids_C: torch.Tensor, rule: SupportRule) -> DeviceScores:
        chunk = _Chunk.measured(self, logits, next_ids_C)
        keep = chunk.kept(rule)
        return chunk.packed(keep, len(next_ids_C) * rule.highest)

    def best_log_scores(self, logits: Logits, highest: int) -> tuple[Mapping[Role, torch.Tensor], np.ndarray]:
        values_CV = next(iter(logits.values()))
        next_ids_C = torch.zeros(len(values_CV), dtype=torch.long, device=values_CV.device)
        chunk = _Chunk.measured(self, logits, next_ids_C)
        scores_CV = torch.empty_like(values_CV, memory_format=torch.contiguous_format)
        chunk.launch(write_scores, *chunk.numbers, scores_CV, *chunk.sizes)
        best_CK = scores_CV.topk(highest, dim=-1).values.log()
        return chunk.by_role(chunk.partition), best_CK.cpu().numpy()

    def constants(self, roles: tuple[Role, ...]) -> dict[str, Any]:
        """What the kernels are compiled for."""
        negatives = (role for role in roles if role in NEGATIVES)
        return {
            "REFERENCE": roles.index("reference"),
            "NEGATIVES": tuple(map(roles.index, negatives)),
            "PAIRS": tuple((roles.index(pair.anchor), roles.index(pair.negative)) for pair in self.pairs),
            "GAINS": (self.nodes.gains[1], self.nodes.gains[-2]),
            "NODE_GAINS": self.nodes.gains[1:],
            "NODE_STRENGTHS": self.nodes.strengths[1:],
            "R": self.tile_rows,
            "L": self.tile_lanes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """What `keep_tokens` writes; see there."""

    counts: torch.Tensor
    bits: torch.Tensor
    tails: torch.Tensor
    tail_partitions: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunk:
    """A chunk of measured positions: what `measure` writes, and how kernels are launched on it."""

    vocabulary: TritonVocabulary
    logits: Logits
    roles: tuple[Role, ...]
    peak: torch.Tensor
    log_sum: torch.Tensor
    partition: torch.Tensor
    next_logprob: torch.Tensor
    distance: torch.Tensor
    teacher_sum: torch.Tensor

    @classmethod
    def measured(cls, vocabulary: TritonVocabulary, logits: Logits, next_ids_C: torch.Tensor) -> "_Chunk":
        roles = tuple(role for role in ROLES if role in logits)
        first_CV = logits[roles[0]]
        if any(logits[role].dtype != torch.float32 or logits[role].stride(1) != 1 for role in roles):
            raise TypeError("expected float32 logits with contiguous rows")

        def new(rows: int) -> torch.Tensor:
            return first_CV.new_empty(rows, len(first_CV))

        negatives = sum(role in NEGATIVES for role in roles)
        chunk = cls(
            vocabulary=vocabulary,
            logits=logits,
            roles=roles,
            peak=new(len(roles)),
            log_sum=new(len(roles)),
            partition=new(len(roles)),
            next_logprob=new(len(roles)),
            distance=new(negatives),
            teacher_sum=new(2 * len(vocabulary.pairs)),
        )
        outputs = (chunk.partition, chunk.next_logprob, chunk.distance, chunk.teacher_sum)
        chunk.launch(measure, next_ids_C, chunk.peak, chunk.log_sum, *outputs, *chunk.sizes)
        return chunk

    @property
    def numbers(self) -> tuple[torch.Tensor, ...]:
        return self.peak, self.log_sum, self.distance, self.teacher_sum

    @property
    def sizes(self) -> tuple[int, int]:
        """V and C."""
        positions, size = self.logits[self.roles[0]].shape
        return size, positions

    @property
    def negatives(self) -> tuple[Role, ...]:
        return tuple(role for role in self.roles if role in NEGATIVES)

    def kept(self, rule: SupportRule) -> _Kept:
        """Select by the one threshold; then, where that keeps too few or too many, by one of the position's own."""
        size, positions = self.sizes
        nodes, shape = self.vocabulary.nodes, self.vocabulary
        tiles = triton.cdiv(size, shape.tile_rows * shape.tile_lanes)
        counts, wanted, cuts = self.peak.new_zeros(3, positions, dtype=torch.int32)
        keep = _Kept(
            counts=counts,
            bits=torch.empty(positions, tiles, shape.tile_lanes, dtype=torch.uint8, device=self.peak.device),
            tails=torch.empty_like(self.peak),
            tail_partitions=self.peak.new_empty(len(shape.pairs), positions, len(nodes) - 1),
        )
        threshold = math.inf if rule.log_threshold is None else math.exp(rule.log_threshold)
        thresholds = self.peak.new_full((positions,), threshold)
        chosen = (*self.numbers, wanted, thresholds, cuts, counts, keep.bits, keep.tails, keep.tail_partitions)
        if rule.log_threshold is not None:
            self.launch(keep_tokens, *chosen, *self.sizes, NOBODY)
        own = (*self.numbers, counts, wanted, thresholds, cuts)
        self.launch(own_thresholds, *own, *self.sizes, rule.lowest, rule.highest)
        self.launch(keep_tokens, *chosen, *self.sizes, 0)
        return keep

    def packed(self, keep: _Kept, capacity: int) -> DeviceScores:
        ids = torch.empty(capacity, dtype=torch.int32, device=self.peak.device)
        logprobs = self.peak.new_empty(len(self.roles), capacity)
        ends = keep.counts.cumsum(0, dtype=torch.long)
        given = (self.peak, self.log_sum, keep.bits, keep.counts, ends, ids, logprobs)
        self.launch(pack_tokens, *given, *self.sizes, capacity)
        return DeviceScores(
            support_count=keep.counts,
            support_ids=ids,
            logprobs=self.by_role(logprobs),
            next_logprob=self.by_role(self.next_logprob),
            tail_logprob=self.by_role(keep.tails),
            l1_distance=dict(zip(self.negatives, self.distance, strict=True)),
            tail_logpartition=dict(zip(self.vocabulary.pairs, keep.tail_partitions, strict=True)),
            log_partition=self.by_role(self.partition),
        )

    def by_role(self, values: torch.Tensor) -> dict[Role, torch.Tensor]:
        return dict(zip(self.roles, values, strict=True))

    def launch(self, kernel: Any, *arguments: Any) -> None:
        """A program for each position. A kernel takes of the constants those that it names."""
        rows = [self.logits[role] for role in self.roles]
        strides = [row_CV.stride(0) for row_CV in (*rows, *rows)][:3]  # with two roles the third is not used
        constants = self.vocabulary.constants(self.roles)
        taken = {name: constants[name] for name in kernel.arg_names if name in constants}
        with torch.cuda.device_of(rows[0]):  # Triton launches on the current device, which may be another one
            kernel[(len(rows[0]),)](
                tuple(rows),
                *strides,
                *arguments,
                **taken,
                num_warps=self.vocabulary.num_warps,
                enable_fp_fusion=False,  # a score must be the same number in every kernel
            )
