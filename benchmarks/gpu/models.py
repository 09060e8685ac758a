"""Models with random weights at known shapes, made on the device itself, and random data for them.

Dimensions: H hidden size.
"""

import copy
import gc
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.building.bench import make_rows
from benchmarks.building.options import BuildingOptions
from benchmarks.gpu.options import GpuOptions
from benchmarks.gpu.shapes import TINY_VOCABULARY, VOCABULARY, Shape
from benchmarks.step.bench import LOGIT_DEVIATION, MOVED
from precompute.models.role_model import RoleModel
from precompute.tokens.tokenized import TokenizedResponse
from shards.format.schema import ROLES, Role

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is measured with: sequences of a batch, their tokens, the prompt's; batches of a whole build and of its
    profile; sequences of a step, and the loader's batches; positions that the floor's output layer takes at a time.
    """

    rows: int = 8
    length: int = 1024
    prompt: int = 256
    step_rows: int = 4
    batches: int = 10
    profiled: int = 4
    loader_batches: int = 24
    top_k: int = 64
    floor_chunk: int = 1024

    @property
    def positions(self) -> int:
        """Response positions of a batch."""
        return self.rows * (self.length - self.prompt)


TINY_LOAD = Load(
    rows=2, length=6, prompt=4, step_rows=2, batches=1, profiled=1, loader_batches=3, top_k=8, floor_chunk=8
)


def load_of(options: GpuOptions) -> Load:
    return TINY_LOAD if options.dry_run else Load()


def vocabulary_of(options: GpuOptions) -> int:
    return TINY_VOCABULARY if options.dry_run else VOCABULARY


def sizes_of(options: GpuOptions) -> list[str]:
    return ["tiny"] if options.dry_run else options.sizes


def device_of(options: GpuOptions) -> torch.device:
    return torch.device("cpu" if options.dry_run else "cuda:0")


def make_model(shape: Shape, dtype: torch.dtype, device: torch.device, *, longest: int = 4096) -> Any:
    """A model with random weights, and logits as far apart as a chat model's: the last norm scales them."""
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes += ("num_key_value_heads", "tie_word_embeddings")
    config = AutoConfig.for_model(
        shape.model_type,
        **{name: getattr(shape, name) for name in sizes},
        max_position_embeddings=longest,
        **{f"{kind}_token_id": i for i, kind in enumerate(("pad", "bos", "eos"))},
    )
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        model.base_model.norm.weight.fill_(LOGIT_DEVIATION / (config.initializer_range * math.sqrt(shape.hidden_size)))
    return model


@torch.no_grad()
def moved(model: Any, seed: int) -> Any:
    """A copy whose every matrix is moved a little, as dpo and reverse are from their reference."""
    torch.manual_seed(seed)
    other = copy.deepcopy(model)
    for weight in other.parameters():
        if weight.ndim > 1:
            weight.add_(torch.randn_like(weight), alpha=float(MOVED * weight.std()))
    return other


def make_trio(shape: Shape, dtype: torch.dtype, device: torch.device) -> dict[Role, Any]:
    """Reference, dpo and reverse; different tensors of one shape."""
    reference = make_model(shape, dtype, device)
    found = {"reference": reference} | {role: moved(reference, seed) for seed, role in enumerate(("dpo", "reverse"), 1)}
    return {role: found[role] for role in ROLES}


def role_models(trio: Mapping[Role, Any], vocabulary: int) -> dict[Role, RoleModel]:
    return {role: RoleModel(role, model, vocabulary) for role, model in trio.items()}


def random_rows(load: Load, vocabulary: int, batches: int) -> list[TokenizedResponse]:
    """Chosen and rejected responses of random tokens, all equally long: `batches` batches of `load.rows`."""
    pairs = load.rows * batches // 2
    sizes = {"sequence_length": load.length, "prompt_tokens": load.prompt, "vocabulary": vocabulary}
    return make_rows(BuildingOptions(pairs=pairs, top_k=load.top_k, **sizes))


def free(device: torch.device) -> None:
    """Give back the memory of models that nobody holds any longer."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_since(device: torch.device) -> int:
    """The most bytes that tensors took, models included, since the last call; on a CPU 0, where nothing counts them."""
    if device.type != "cuda":
        return 0
    found = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return found
