"""Collator: turns a micro-batch of responses into tensors, and composes their teacher.

Dimensions: B sequences of a micro-batch, T tokens, N response positions and M kept tokens of the micro-batch.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from shards import TeacherSpec
from shards.format.nodes import StrengthNodes
from shards.format.schema import Role
from shards.format.scores import segment_starts
from shards.teacher.compose import compose
from student.data.order import FILLS
from student.data.responses import MicroBatch
from student.loss.rows import in_one, padded


@dataclass(frozen=True, slots=True, kw_only=True)
class Collator:
    """Turns a micro-batch of responses into tensors, with the teacher composed. Values are float32.

    input_ids, attention_mask, position   see `student.loss.rows.padded`; padding_free: input_ids, packed, position of
                                `in_one`
    support_count, support_ids  (N,), (M,)   the latter int32, which halves the bytes sent to the device
    support_ends                (N,)   sums of the counts up to each position; for the host, which cuts chunks with them
    teacher_logprobs, teacher_tail       (M,), (N,)   log p* of the kept tokens, of the tail
    reference_logprobs, reference_tail   (M,), (N,)
    dpo_logprobs, dpo_tail      (M,), (N,)
    reward                      (M,)   beta * (l_dpo - l_reverse) of the kept tokens, for every teacher, so that runs
                                can be compared; without a reverse model beta * (l_dpo - l_reference)
    dpo_reward                  (N,)   its expectation under dpo, on the support
    strength, tail_bound        (N,)   w_t; error bound of the interpolated tail, nats
    coefficient                 (N,)   factor of a position's divergence in the sum that is divided by `num_items`
    counts                      (N,)   1, or 0 at the positions of rows that only fill the batch
    rows                        (B,)   each sequence's row of the data set, -1 if it only fills the batch; for the host
    num_items, num_sequences, num_positions   counts of: units of the reduction, sequences, response positions
    """

    spec: TeacherSpec
    nodes: StrengthNodes
    reduction: Literal["sequence", "token"]
    pad_token_id: int
    padding_free: bool = False

    def __call__(self, batch: MicroBatch) -> dict[str, Any]:
        scores = batch.scores
        teacher = compose(scores, self.spec, self.nodes, dtype=np.float32)
        size_B = np.array([int(row.loss_mask.sum()) for row in batch.tokens])
        counts_B = np.array(batch.counts, dtype=np.float64)
        counts_N = np.repeat(counts_B, size_B)
        per_row_N = np.repeat(size_B, size_B) if self.reduction == "sequence" else np.ones(len(counts_N))
        num_sequences, num_positions = int(counts_B.sum()), int(counts_N.sum())

        dpo_M = scores.logprobs["dpo"]
        against: Role = "reverse" if "reverse" in scores.logprobs else "reference"
        reward_M = np.float32(self.spec.beta) * (dpo_M - scores.logprobs[against])
        floats = {
            "teacher_logprobs": teacher.logprobs,
            "teacher_tail": teacher.tail_logprob,
            "reference_logprobs": scores.logprobs["reference"],
            "reference_tail": scores.tail_logprob["reference"],
            "dpo_logprobs": dpo_M,
            "dpo_tail": scores.tail_logprob["dpo"],
            "reward": reward_M,
            "dpo_reward": np.add.reduceat(np.exp(dpo_M) * reward_M, segment_starts(scores.support_count)),
            "strength": teacher.strength,
            "tail_bound": teacher.tail_bound,
            "coefficient": teacher.weight * counts_N / per_row_N,
            "counts": counts_N,
        }
        return {
            **(in_one(batch.tokens) if self.padding_free else padded(batch.tokens, self.pad_token_id)),
            "support_count": torch.from_numpy(scores.support_count.astype(np.int64)),
            "support_ends": torch.from_numpy(np.cumsum(scores.support_count, dtype=np.int64)),
            "support_ids": torch.from_numpy(np.require(scores.support_ids, np.int32, "W")),
            "rows": torch.tensor(np.where(counts_B[: len(batch.rows)], batch.rows, FILLS), dtype=torch.int64),
            **{name: torch.from_numpy(np.require(values, np.float32, "W")) for name, values in floats.items()},
            "num_items": torch.tensor(num_sequences if self.reduction == "sequence" else num_positions),
            "num_sequences": torch.tensor(num_sequences),
            "num_positions": torch.tensor(num_positions),
        }
