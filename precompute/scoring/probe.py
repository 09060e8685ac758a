"""The precision probe: compares bodies in the dtype of a build with float32 ones, on a few rows, before any shard.

`exact_logprobs` runs one float32 body at a time and keeps its log-probs in host memory; `precision` then runs the
models of the build over the same positions. A sample has at most PROBE_POSITIONS positions, so three roles of a
vocabulary of 150,000 tokens take 0.9 GB.

Dimensions: C positions of a chunk, N of the sample, V vocabulary.
"""

import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from safetensors import safe_open

from precompute.models.folders import load_models
from precompute.scoring.dense import angle_degrees, dense_divergence, dense_teacher
from precompute.scoring.packing import batched
from precompute.scoring.partitions import Logprobs, l1_distances
from precompute.scoring.score import Scorer
from precompute.tokens.tokenized import AnyRow
from shards import Divergence, TeacherSpec
from shards.cli.device import set_products
from shards.errors import ModelError, NonFiniteLogits, first_line
from shards.files import matching
from shards.format.nodes import StrengthNodes
from shards.format.schema import Pair, Role
from shards.modelfiles.find import ModelFolder
from shards.modelfiles.head import require_room
from shards.progress import progress
from shards.spread import spread
from shards.teacher.precision import Precision
from shards.teacher.spec import PRESETS

PROBE_ROWS, PROBE_TOKENS, PROBE_POSITIONS = 16, 4096, 512
BATCH_TOKENS = 2048
"""Of a forward pass of the probe; the same for both sides, because the order of the positions follows from it."""
POSITIONS_AT_A_TIME = 16
"""Positions compared at a time, over the whole vocabulary in float64."""
MEMORY_FACTOR = 1.15
"""Memory of a loaded float32 body over that of its weights."""
OTHER_HALF = {"float16": "bfloat16", "bfloat16": "float16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exact:
    """What the rounded bodies are compared with.

    dtype      of the build: float16, bfloat16, or tf32 for float32 bodies with TF32 products
    rows       the sample, with a loss mask at the compared positions only
    against    dtype of these bodies; None if they cannot be run: then there are no log-probs
    logprobs   role -> (N, V) float32, in host memory
    """

    rows: Sequence[Any]
    dtype: str
    against: str | None
    logprobs: Logprobs


def probe_rows(rows: Sequence[AnyRow]) -> list[AnyRow]:
    """A fixed sample: rows spread evenly over all, and of each as many positions, spread evenly over the response."""
    tokens, found = 0, list[AnyRow]()
    for i in spread(len(rows), PROBE_ROWS):
        tokens += len(rows[i].input_ids)
        if found and tokens > PROBE_TOKENS:
            break
        found.append(rows[i])
    return [_thinned(row, PROBE_POSITIONS // len(found)) for row in found]


def needs_probe(numerics: Mapping[str, Any]) -> bool:
    """Whether bodies with these numerics (`precompute.numerics`) round more than float32 ones."""
    return numerics["dtype"] in OTHER_HALF or bool(numerics.get("tf32"))


def default_spec(pairs: Sequence[Pair]) -> TeacherSpec:
    """The first preset that these pairs serve, the default one if possible; else their first pair, adaptive."""
    served = (spec for spec in PRESETS.values() if spec.pair in pairs)
    return next(served, TeacherSpec(anchor=pairs[0].anchor, negative=pairs[0].negative))


def exact_logprobs(
    folders: Mapping[Role, ModelFolder],
    vocabulary_size: int,
    rows: Sequence[Any],
    *,
    numerics: Mapping[str, Any],
    device: torch.device,
    attn_implementation: str | None = None,
    **kwargs: Any,
) -> Exact:
    """Log-probs of float32 bodies, one in memory at a time; of the other half-precision dtype where one does not fit.

    numerics: of the build (`precompute.numerics`). kwargs go to from_pretrained (device_map, trust_remote_code). Raises
    ModelError, and NonFiniteLogits for a float32 body.
    """
    dtype = "tf32" if numerics.get("tf32") else numerics["dtype"]
    options = {"device": device, "attn_implementation": attn_implementation, **kwargs}
    spread_out = kwargs.get("device_map") is not None
    fits = all(float32_bytes(folder) * MEMORY_FACTOR < free_bytes(device, spread_out) for folder in folders.values())
    try:
        if fits or dtype == "tf32":
            logprobs = _logprobs(folders, vocabulary_size, rows, dtype, "float32", options)
            return Exact(rows=rows, dtype=dtype, against="float32", logprobs=logprobs)
    except torch.OutOfMemoryError as exc:
        if dtype == "tf32":
            raise ModelError(f"tf32: expected memory for one float32 body, got {first_line(exc)}") from exc
    finally:
        set_products(torch, dtype=numerics["dtype"], tf32=dtype == "tf32", device=device)
    _release(device)
    try:
        found = _logprobs(folders, vocabulary_size, rows, dtype, OTHER_HALF[dtype], options)
    except NonFiniteLogits:
        return Exact(rows=rows, dtype=dtype, against=None, logprobs={})
    return Exact(rows=rows, dtype=dtype, against=OTHER_HALF[dtype], logprobs=found)


def _logprobs(
    folders: Mapping[Role, ModelFolder],
    vocabulary_size: int,
    rows: Sequence[Any],
    dtype: str,
    against: str,
    options: Mapping[str, Any],
) -> dict[Role, torch.Tensor]:
    """Role -> (N, V) float32 in host memory, from bodies in the dtype `against`, one in memory at a time."""
    device, attention = options["device"], options["attn_implementation"]
    if against == "float32" and (attention or "").startswith("flash"):
        attention = None  # flash attention has no float32
    given = {**options, "device": str(device), "attn_implementation": attention}
    set_products(torch, dtype=against, tf32=False, device=device)
    found: dict[Role, torch.Tensor] = {}
    for role, folder in progress(folders.items(), f"probing {dtype} against {against}", unit="model", brief=True):
        models = load_models({role: folder}, vocabulary_size, dtype=against, **given)
        require_room(models[role].model.config, max(len(row.input_ids) for row in rows), role)
        scorer = Scorer(models=models, pairs=(), nodes=StrengthNodes(), chunk_positions=128, device=device)
        try:
            found[role] = torch.cat([part[role].cpu() for part in logprobs_of(scorer, rows)])
        finally:
            del models, scorer
            _release(device)
    return found


def precision(scorer: Scorer, exact: Exact, spec: TeacherSpec) -> Precision:
    """What the scorer's bodies cost. Raises NonFiniteLogits, naming role, sample and position."""
    sums, first = np.zeros(6), 0
    home = scorer.device if scorer.device.type == "cuda" else torch.device("cpu")  # others may lack float64
    for rounded in logprobs_of(scorer, exact.rows):
        stop = first + len(rounded["dpo"])
        if exact.against is not None:
            here = {role: l_NV[first:stop].to(home) for role, l_NV in exact.logprobs.items()}
            sums += _sums(here, {role: l_CV.to(home) for role, l_CV in rounded.items()}, spec)
        first = stop
    positions = first if exact.against is not None else 0
    signal, error, rounded_count = sums[:3] / max(1, positions)
    angle = angle_degrees(*sums[3:])
    return Precision(
        dtype=exact.dtype,
        against=None if angle is None else exact.against,  # without a gradient there is nothing to measure
        positions=positions,
        negative=spec.negative,
        signal_nats=float(signal),
        error_nats=float(error),
        angle_degrees=angle or 0.0,
        rounded_share=float(rounded_count),
    )


def logprobs_of(scorer: Scorer, rows: Sequence[Any]) -> Iterator[dict[Role, torch.Tensor]]:
    """Log-probs of all roles, (C, V), a few positions at a time, in the order of the batches of these rows."""
    for chunks in scorer.chunks(batched(rows, BATCH_TOKENS)):
        for logprobs, _ in chunks:
            parts = {role: l_CV.split(POSITIONS_AT_A_TIME) for role, l_CV in logprobs.items()}
            for part in zip(*parts.values(), strict=True):
                yield dict(zip(parts, part, strict=True))


def float32_bytes(folder: ModelFolder) -> int:
    """Bytes of a model's weights in float32, with those of an adapter's base."""
    names = matching(folder.path, "*.safetensors")
    return sum(_numel(name) for name in names) * 4 + (float32_bytes(folder.base) if folder.base else 0)


def free_bytes(device: torch.device, spread_out: bool = False) -> int:
    """Free memory of a device, or of all GPUs for a body that is spread over them; of the machine for a processor."""
    if device.type == "cuda":
        devices = range(torch.cuda.device_count()) if spread_out else [device]
        return sum(torch.cuda.mem_get_info(one)[0] for one in devices)
    return psutil.virtual_memory().available


def _sums(exact: Logprobs, rounded: Logprobs, spec: TeacherSpec) -> np.ndarray:
    """Sums over positions: signal, its error, positions whose D_t is rounding; squares of both gradients and of their
    difference."""
    exact, rounded = ({role: l_CV.double() for role, l_CV in part.items()} for part in (exact, rounded))
    probs_CV = exact["dpo"].exp()
    signal_CV, found_CV = (part["dpo"] - part[spec.negative] for part in (exact, rounded))
    distance_C, rounded_C = (l1_distances(part)[spec.negative] for part in (exact, rounded))
    gradients = []
    for part in (exact, rounded):
        teacher = dense_teacher(part, spec)
        _, gradient_CV = dense_divergence(exact["reference"], teacher.logprobs, Divergence())
        gradients.append(gradient_CV * teacher.weight[:, None])
    values = (
        (probs_CV * signal_CV.abs()).sum(),
        (probs_CV * (found_CV - signal_CV).abs()).sum(),
        (2 * (rounded_C - distance_C).abs() > rounded_C).sum(),
        *(vector.square().sum() for vector in (*gradients, gradients[0] - gradients[1])),
    )
    return np.array([float(value) for value in values])


def _thinned(row: AnyRow, positions: int) -> AnyRow:
    """The row with at most `positions` response positions."""
    places = np.flatnonzero(row.loss_mask)
    mask = np.zeros_like(row.loss_mask)
    mask[places[spread(len(places), positions)]] = True
    return replace(row, loss_mask=mask)


def _numel(file: Path) -> int:
    with safe_open(file, "np") as weights:
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
