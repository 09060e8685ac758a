"""Measures a model on cached responses: one forward pass over each, and a few sums per response.

Dimensions: R responses of the cache, N response positions of a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from shards import Divergence, ShardCache, TeacherSpec
from shards.errors import NonFiniteLogits
from shards.format.encoding.selection import Selection
from shards.format.nodes import StrengthNodes
from shards.format.scores import Scores, segment_starts
from shards.modelfiles.head import require_room
from shards.modelfiles.precision import remedy
from shards.preferences.pairs import log_ratios
from shards.progress import progress
from shards.teacher.compose import compose
from student.data.collate import Collator
from student.data.responses import MicroBatch
from student.loss.forward import DistillForward
from student.loss.sparse import SparseTargets
from student.runs.record import Record

TEACHER = "teacher"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseSums:
    """Sums over the positions of every response, (R,) each, in the order of the cache. Float64, nats.

    divergence          to the teacher, over buckets, not weighted by lambda_t
    own_divergence      the same to the model's own teacher, with its own divergence; None if that is the same one
    kl_reference        KL(model || reference), over buckets
    support_mass        the model's mass on the kept tokens
    expected_reward     the model's expectation of beta (l_dpo - l_reverse), on the kept tokens
    log_ratio           log p_model(y_t) - l_ref(y_t) of the response's own tokens
    teacher_log_ratio, dpo_log_ratio    the same for the teacher and dpo, from the cache: independent of the model
    contrastive         l_dpo(y_t) - l_reverse(y_t); without a reverse model l_dpo - l_ref
    """

    divergence: np.ndarray
    own_divergence: np.ndarray | None = None
    kl_reference: np.ndarray
    support_mass: np.ndarray
    expected_reward: np.ndarray
    log_ratio: np.ndarray
    teacher_log_ratio: np.ndarray
    dpo_log_ratio: np.ndarray
    contrastive: np.ndarray


def measure(
    model: Any,
    cache: ShardCache,
    spec: TeacherSpec,
    *,
    divergence: Divergence,
    batch_size: int,
    chunk_positions: int,
    pad_token_id: int,
    description: str,
    own: Record | None = None,
) -> ResponseSums:
    """Run `model` over all responses of a cache, longest first. Raises AlignDistilError.

    own: a second teacher and divergence to measure against.

    Raises ModelError if the rows do not fit into the model, NonFiniteLogits naming the response.
    """
    index = cache.index
    require_room(model.config, int(index.num_tokens.max()), description)
    forward = DistillForward(
        model.eval(),
        vocabulary_size=cache.plan.vocabulary_size,
        divergence=divergence,
        chunk_positions=chunk_positions,
    )
    selection = Selection.everything(cache.plan)
    collator = Collator(spec=spec, nodes=cache.plan.nodes, reduction="token", pad_token_id=pad_token_id)
    names = [field.name for field in fields(ResponseSums) if own is not None or field.name != "own_divergence"]
    sums = {name: np.full(len(cache), np.nan) for name in names}
    order = np.argsort(-index.num_tokens, kind="stable")
    with progress(None, description, total=cache.plan.positions, unit="tok") as bar:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size].tolist()
            tokens, scores = cache.read_joined(rows, selection)
            batch = MicroBatch(tokens=tokens, counts=[True] * len(rows), scores=scores)
            starts = segment_starts(index.num_positions[rows])
            found = _of_model(forward, collator(batch))
            _require_finite(found, cache, rows, starts, model.dtype)
            found |= _of_cache(scores, spec, cache.plan.nodes)
            if own is not None:
                found["own_divergence"] = _own_divergence(found, scores, own, cache.plan.nodes)
            found["log_ratio"] = found["next_logprob"] - scores.next_logprob["reference"]
            for name, sum_R in sums.items():
                sum_R[rows] = np.add.reduceat(found[name], starts)
            bar.update(scores.num_positions)
    return ResponseSums(**sums)


def _of_model(forward: DistillForward, inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The result of `DistillForward.measure`, float64."""
    inputs = {name: tensor.to(forward.model.device) for name, tensor in inputs.items()}
    found = forward.measure(inputs["input_ids"], inputs["attention_mask"], inputs["position"], SparseTargets(inputs))
    return {name: values_N.double().cpu().numpy() for name, values_N in found.items()}


def _own_divergence(found: Mapping[str, np.ndarray], scores: Scores, own: Record, nodes: StrengthNodes) -> np.ndarray:
    """Divergence of the model's buckets from another teacher's, (N,), nats."""
    teacher = compose(scores, own.spec, nodes)
    kept_M, _ = own.divergence.terms(found["kept_logprobs"], teacher.logprobs, np)
    tail_N, _ = own.divergence.terms(found["tail_logprob"], teacher.tail_logprob, np)
    return np.add.reduceat(kept_M, segment_starts(scores.support_count)) + tail_N


def _require_finite(
    found: Mapping[str, np.ndarray], cache: ShardCache, rows: Sequence[int], starts: np.ndarray, dtype: torch.dtype
) -> None:
    """Raise NonFiniteLogits naming the first position with other values; starts: the first position of each row."""
    logits_N = np.isfinite(found["divergence"]) & np.isfinite(found["next_logprob"])
    for what, fine_N in (("hidden states", found["finite_state"] == 1.0), ("logits", logits_N)):
        bad = np.flatnonzero(~fine_N)
        if len(bad):
            number = int(np.searchsorted(starts, bad[0], side="right")) - 1
            response = cache[rows[number]]
            token = np.flatnonzero(response.loss_mask)[bad[0] - starts[number]] - 1
            where = f"sample {response.sample_id} at token {token}"
            raise NonFiniteLogits(f"model: expected finite {what} for {where}, got others{remedy(dtype)}")


def _of_cache(scores: Scores, spec: TeacherSpec, nodes: StrengthNodes) -> dict[str, np.ndarray]:
    """Log-ratios at the responses' own tokens that do not depend on the model, (N,)."""
    ratios = log_ratios(scores, {TEACHER: spec}, nodes)
    against_N = scores.next_logprob["reverse" if "reverse" in scores.next_logprob else "reference"]
    return {
        "teacher_log_ratio": ratios[TEACHER],
        "dpo_log_ratio": ratios["dpo"],
        "contrastive": scores.next_logprob["dpo"].astype(np.float64) - against_N,
    }
