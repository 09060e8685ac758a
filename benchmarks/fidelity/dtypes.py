"""Bodies in several dtypes against float32 ones: what rounding costs alone, and with support and codec.

bfloat16 and float16 bodies run as they are. TF32 products are emulated in float32: the factors of every product of a
linear layer and of attention are rounded to ten bits of mantissa, to nearest; sums are float32's. Output layers have
float32 products in all of them.

Dimensions: N positions, C of a chunk, V vocabulary.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from benchmarks.fidelity.dense import Dense, load_roles, score
from benchmarks.fidelity.measure import CHUNK, NODES, default_scores
from precompute.check.compare import STAGES, sparse_divergence, student_logprobs
from precompute.models.role_model import RoleModel
from precompute.scoring.dense import angle_degrees, dense_divergence, dense_teacher
from precompute.tokens.tokenized import TokenizedResponse
from shards import Divergence, TeacherSpec
from shards.format.schema import Role
from shards.format.scores import Scores
from shards.teacher.compose import compose

DTYPES = ("bfloat16", "float16", "tf32", "float32")
GAINS = (2.0, 10.0, 20.0)
CAP = 1.0
"""Of lambda_t, ten times the default beta."""
TF32_DROPPED_BITS = 13
Row = dict[str, Any]


class Tf32Products(TorchFunctionMode):
    """Rounds the factors of linear layers and of `torch.matmul`, which eager attention calls; heads: not of these."""

    def __init__(self, heads: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._heads = {head.data_ptr() for head in heads}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (torch.nn.functional.linear, torch.matmul) and args[1].data_ptr() not in self._heads:
            args = (to_tf32(args[0]), to_tf32(args[1]), *args[2:])
        return func(*args, **(kwargs or {}))


def to_tf32(value: torch.Tensor) -> torch.Tensor:
    """Float32 values rounded to ten bits of mantissa, ties away from zero."""
    half = 1 << (TF32_DROPPED_BITS - 1)
    return ((value.contiguous().view(torch.int32) + half) & (-1 << TF32_DROPPED_BITS)).view(torch.float32)


def score_in(dtype: str, folders: Mapping[Role, Path], rows: Sequence[TokenizedResponse], positions: int) -> Dense:
    """The same positions with bodies in a dtype of DTYPES."""
    if dtype != "tf32":
        return score(load_roles(folders, dtype), rows, positions)
    models = load_roles(folders, "float32", attn_implementation="eager")
    with Tf32Products(head_weights(models)):
        return score(models, rows, positions)


def head_weights(models: Mapping[Role, RoleModel]) -> list[torch.Tensor]:
    return [model.model.get_output_embeddings().weight for model in models.values()]


def table(
    exact: Dense, folders: Mapping[Role, Path], rows: Sequence[TokenizedResponse], positions: int, top_k: int
) -> list[Row]:
    """A row for every dtype and gain, aligndistil.

    alone, chain   angle of the gradient at every stage, of the dense loss of these bodies and of their cache's, to the
                   dense loss of float32 bodies
    capped         as chain, with lambda_t at most CAP on both sides
    signal, error  of l_dpo - l_reverse: mean absolute value under p_dpo, and that of its error, nats
    """
    found = []
    for dtype in DTYPES:
        rounded = exact if dtype == "float32" else score_in(dtype, folders, rows, positions)
        scores = default_scores(rounded, top_k)
        signal, error = signal_and_error(exact, rounded)
        for gain in GAINS:
            alone, chain = angles(exact, rounded, scores, TeacherSpec(gain=gain))
            _, capped = angles(exact, rounded, scores, TeacherSpec(gain=gain, max_weight=CAP))
            angle = {"alone": alone, "chain": chain, "capped": capped}
            found.append({"dtype": dtype, "gain": gain, **angle, "signal": signal, "error": error})
    return found


def signal_and_error(exact: Dense, rounded: Dense) -> tuple[float, float]:
    signal = error = 0.0
    for i in range(0, len(exact), CHUNK):
        wide, narrow = (dense.take(slice(i, i + CHUNK)).logprobs for dense in (exact, rounded))
        wide_CV, narrow_CV = (part["dpo"].double() - part["reverse"].double() for part in (wide, narrow))
        probs_CV = wide["dpo"].double().exp()
        signal += float((probs_CV * wide_CV.abs()).sum())
        error += float((probs_CV * (narrow_CV - wide_CV).abs()).sum())
    return signal / len(exact), error / len(exact)


def angles(exact: Dense, rounded: Dense, scores: Scores, spec: TeacherSpec) -> tuple[list[float], list[float]]:
    """(of the dense loss, of the cache's) of the rounded bodies, at every stage, degrees."""
    sums = torch.zeros(2, len(STAGES), 3, dtype=torch.float64)
    for i in range(0, len(exact), CHUNK):
        here = slice(i, min(i + CHUNK, len(exact)))
        sums += _squares(exact.take(here), rounded.take(here), scores.slice(here.start, here.stop), spec)
    alone, chain = ([angle_degrees(*stage.tolist()) or 0.0 for stage in kind] for kind in sums)
    return alone, chain


def _squares(exact: Dense, rounded: Dense, scores: Scores, spec: TeacherSpec) -> torch.Tensor:
    """Squares of the wanted gradient, the found one and their difference: (dense or cache, stage, 3)."""
    live, narrow, cached = (
        dense_teacher(exact.logprobs, spec),
        dense_teacher(rounded.logprobs, spec),
        compose(scores, spec, NODES),
    )
    reference_CV, of = exact.logprobs["reference"].double(), Divergence()
    found = torch.zeros(2, len(STAGES), 3, dtype=torch.float64)
    for stage, done in enumerate(STAGES.values()):
        student_CV = student_logprobs(reference_CV, live.logprobs, done)
        wanted_CV = dense_divergence(student_CV, live.logprobs, of)[1].mul_(live.weight[:, None])
        given = (
            dense_divergence(student_CV, narrow.logprobs, of)[1].mul_(narrow.weight[:, None]),
            sparse_divergence(student_CV, cached, of)[1].mul_(torch.from_numpy(cached.weight)[:, None]),
        )
        for kind, gradient_CV in enumerate(given):
            pair = wanted_CV.square().sum(), gradient_CV.square().sum()
            found[kind, stage] = torch.stack([*pair, gradient_CV.sub_(wanted_CV).square_().sum()])
    return found
