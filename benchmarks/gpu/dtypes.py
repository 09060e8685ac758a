"""What a dtype of the bodies costs: angle of the dense gradient over logits, and the error of l_dpo - l_reverse.

Against float32 bodies, on the same positions; the student is the float32 reference; the teacher is the default one.
Without --trio the three models have random weights in the shape of SmolLM2-135M, which says how a GPU rounds beside
another one, not what real models lose.

Dimensions: N response positions, V vocabulary.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.models import (
    DTYPES,
    device_of,
    free,
    load_of,
    make_trio,
    random_rows,
    role_models,
)
from benchmarks.gpu.options import GpuOptions
from benchmarks.gpu.parts import Cells, NotHere
from benchmarks.gpu.shapes import SHAPES, TINY_VOCABULARY
from benchmarks.online.live import compose_live
from precompute.models.folders import check_vocabularies, load_merged, load_models, load_tokenizer
from precompute.scoring.score import hidden_states
from precompute.tokens.tokenized import TokenizedResponse
from shards import TeacherSpec
from shards.cli.device import set_products
from shards.format.schema import ROLES, Role
from shards.modelfiles.adapter import rounded
from shards.modelfiles.find import ModelFolder, resolve

WAYS = ("float16", "bfloat16", "float32, TF32 products")
GAINS = (2.0, 10.0)
ROWS, TOKENS, PROMPT = 4, 160, 32
Logprobs = dict[Role, torch.Tensor]


def planned(options: GpuOptions) -> list[str]:
    return list(WAYS)


def measure(cells: Cells, options: GpuOptions) -> None:
    source = Trio(options)
    set_products(torch, dtype="float32", tf32=False, device=source.device)
    exact = source.logprobs("float32")
    cells.fact(trio=source.name, signal_nats=_expected(exact, _signal(exact)))
    for way in WAYS:
        with cells.row(way), _products(way, source.device):
            found = source.logprobs(way.split(",")[0])
            angles = {f"angle_{gain:g}": angle(exact, found, exact["reference"], gain) for gain in GAINS}
            error = _expected(exact, _signal(found) - _signal(exact))
            same = angle(exact, found, found["reference"], GAINS[1])
            cells.put(way, angles | {"error_nats": error, "student_angle_10": same})


class Trio:
    """Three models that are loaded in a dtype, run, and given back; with --trio real ones, on their own samples."""

    def __init__(self, options: GpuOptions) -> None:
        self.device, self.options = device_of(options), options
        self.folders: Mapping[Role, ModelFolder] = {}
        if options.trio is None:
            size = "tiny" if options.dry_run else "135M"
            self.name = f"random weights, shape {size}"
            self.shape = SHAPES[size]
            self.vocabulary = TINY_VOCABULARY if options.dry_run else self.shape.vocab_size
            self.rows = random_rows(load_of(options), self.vocabulary, 1)[:ROWS]
        else:
            self.folders = {role: resolve(str(Path(options.trio) / role)) for role in ROLES}
            names = check_vocabularies({role: load_tokenizer(folder) for role, folder in self.folders.items()})
            self.name, self.vocabulary = Path(options.trio).name, max(names.values()) + 1
            self.rows = self._sampled()

    @torch.no_grad()
    def logprobs(self, dtype: str) -> Logprobs:
        """Role -> (N, V) float32, nats, from bodies in this dtype; output layers as the build has them."""
        free(self.device)
        if self.folders:
            models = load_models(self.folders, self.vocabulary, dtype=dtype, device=str(self.device))
        else:
            exact = make_trio(self.shape, torch.float32, self.device)
            models = role_models(
                {role: rounded(model, DTYPES[dtype]) for role, model in exact.items()}, self.vocabulary
            )
        found: Logprobs = {}
        for role, model in models.items():
            hidden_NH = hidden_states(model, self.rows)
            with model.active():
                found[role] = model.logits(hidden_NH).log_softmax(-1)
        return found

    @torch.no_grad()
    def _sampled(self) -> list[TokenizedResponse]:
        """Responses that the reference samples after its first token."""
        model = load_merged(self.folders["reference"], "reference", dtype="float32", device=str(self.device))
        first = model.config.get_text_config().bos_token_id or 0
        torch.manual_seed(0)
        given_BT = torch.full((ROWS, 1), first, device=self.device)
        size = {"min_new_tokens": TOKENS, "max_new_tokens": TOKENS}
        ids_BT = model.generate(given_BT, do_sample=True, top_k=0, **size).cpu().numpy().astype(np.int32)
        return [
            TokenizedResponse(
                sample_id=f"{i}/chosen", pair_id=i, chosen=True, response_start=PROMPT, input_ids=ids,
                loss_mask=np.arange(len(ids)) >= PROMPT, truncated=False, prompt_is_prefix=True,
            )
            for i, ids in enumerate(ids_BT)
        ]  # fmt: skip


def gradient(logprobs: Mapping[Role, torch.Tensor], student_NV: torch.Tensor, gain: float) -> torch.Tensor:
    """lambda_t times the gradient of KL(student || teacher) over the student's logits, (N, V), float64."""
    wide = {role: l_NV.double() for role, l_NV in logprobs.items()}
    teacher_NV, weight_N = compose_live(wide, TeacherSpec(gain=gain))
    student_NV = student_NV.double()
    ratio_NV, p_NV = student_NV - teacher_NV, student_NV.exp()
    return weight_N[:, None] * p_NV * (ratio_NV - (p_NV * ratio_NV).sum(-1, keepdim=True))


def angle(exact: Logprobs, found: Logprobs, student_NV: torch.Tensor, gain: float) -> float:
    """Degrees between the gradients from float32 bodies and from these; student_NV: of the second."""
    first = gradient(exact, exact["reference"], gain).flatten()
    second = gradient(found, student_NV, gain).flatten()
    first, second = first / first.norm(), second / second.norm()
    return float(torch.rad2deg(2 * torch.atan2((first - second).norm(), (first + second).norm())))


def _signal(logprobs: Mapping[Role, torch.Tensor]) -> torch.Tensor:
    """l_dpo - l_reverse, (N, V), nats."""
    return logprobs["dpo"] - logprobs["reverse"]


def _expected(exact: Logprobs, values_NV: torch.Tensor) -> float:
    """The mean over positions of the expected size of values under dpo."""
    return float((exact["dpo"].exp() * values_NV.abs()).sum(-1).mean())


@contextmanager
def _products(way: str, device: torch.device) -> Iterator[None]:
    """Products as a build of this way has them. Raises NotHere for TF32 where there is no GPU."""
    tf32 = "TF32" in way
    if tf32 and device.type != "cuda":
        raise NotHere("TF32 products need a GPU")
    set_products(torch, dtype=way.split(",")[0], tf32=tf32, device=device)
    try:
        yield
    finally:
        set_products(torch, dtype="float32", tf32=False, device=device)
