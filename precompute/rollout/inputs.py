"""Reads the inputs of a rollout before any model is loaded: model folder, prompts, identity of the samples."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig

from precompute.models.folders import identity, load_tokenizer
from precompute.models.tokenizer_identity import tokenizer_identity
from precompute.numerics import numerics
from precompute.rollout.options import RolloutOptions
from precompute.rollout.sampling import Request, Sampling
from precompute.tokens.prompts import Prompt, load_prompts, prompts_sha256
from shards.cli.device import resolve_device, resolve_dtype, set_products
from shards.errors import DataError, ModelError
from shards.modelfiles.find import ModelFolder, resolve
from shards.modelfiles.folder import refusing


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSources:
    """The inputs of a rollout, by names and hashes."""

    folder: ModelFolder
    tokenizer: Any
    sampling: Sampling
    device: torch.device
    dtype: str
    identity: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutInputs:
    """What a rollout has read. `prompts`: those that fit into the model, by number; `skipped`: how many do not fit.

    dtype: of the model, as resolved; notes, warnings: on the data, for the user.
    """

    folder: ModelFolder
    tokenizer: Any
    prompts: dict[int, Prompt]
    skipped: int
    notes: Sequence[str]
    warnings: Sequence[str]
    sampling: Sampling
    device: torch.device
    dtype: str

    def requests(self, num_samples: int) -> list[Request]:
        """All samples, longest prompts first: batches then need little padding, and the first one is the largest."""
        order = sorted(self.prompts.values(), key=lambda prompt: (-len(prompt.token_ids), prompt.id))
        return [
            Request(prompt=prompt.id, sample=sample, token_ids=prompt.token_ids)
            for prompt in order
            for sample in range(num_samples)
        ]


def find_sources(options: RolloutOptions) -> RolloutSources:
    """Find the model, hash the prompts, and compute the identity of the samples."""
    folder = resolve(options.model)
    trust = options.trust_remote_code
    tokenizer = load_tokenizer(folder, trust_remote_code=trust)
    device = resolve_device(torch, options.device, 0)
    dtype = resolve_dtype(options.dtype, device)
    set_products(torch, dtype=dtype, tf32=options.tf32, device=device)
    sampling = Sampling(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        seed=options.seed,
        end_ids=end_ids(folder, tokenizer),
        vocabulary_size=max(tokenizer.get_vocab().values()) + 1,
    )
    found = {
        "options": options.identity(),
        "model": identity(folder, trust_remote_code=trust),
        "tokenizer": tokenizer_identity(tokenizer),
        "end_ids": list(sampling.end_ids),
        "data": {"prompts_sha256": prompts_sha256(options.data_sources)},
        "numerics": _numerics(options, device, dtype),
    }
    return RolloutSources(
        folder=folder, tokenizer=tokenizer, sampling=sampling, device=device, dtype=dtype, identity=found
    )


def read_inputs(options: RolloutOptions, sources: RolloutSources) -> RolloutInputs:
    """Tokenise the prompts."""
    data = options.data_sources
    found = load_prompts(data, tokenizer=sources.tokenizer)
    if found.sha256 != sources.identity["data"]["prompts_sha256"]:
        raise DataError(f"{data}: expected the prompts of a minute ago, got others; is it still being written?")
    room = _room(sources.folder, trust_remote_code=options.trust_remote_code)
    prompts = {prompt.id: prompt for prompt in found.prompts if _fits(prompt, room, options)}
    if not prompts:
        raise DataError(f"{data}: no prompt leaves room for {options.max_new_tokens} tokens out of {room}")
    return RolloutInputs(
        folder=sources.folder,
        tokenizer=sources.tokenizer,
        prompts=prompts,
        skipped=len(found.prompts) - len(prompts),
        notes=found.notes,
        warnings=found.warnings,
        sampling=sources.sampling,
        device=sources.device,
        dtype=sources.dtype,
    )


def end_ids(folder: ModelFolder, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end a response: the tokenizer's end-of-sequence token and those named in the model's folder.

    Raises ModelError if there are none.
    """
    path = (folder.base or folder).path
    if (path / "generation_config.json").is_file():
        with refusing(folder.name, "a generation_config.json that can be read"):
            named = GenerationConfig.from_pretrained(path).eos_token_id
    else:
        named = None
    found = {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id} - {None}
    if not found:
        raise ModelError(f"{folder.name}: expected an end-of-sequence token, got none")
    return tuple(sorted(found))


def _room(folder: ModelFolder, *, trust_remote_code: bool) -> int | None:
    """Number of positions of the model; None if it has no limit."""
    with refusing(folder.name, "a model that transformers knows"):
        config = AutoConfig.from_pretrained((folder.base or folder).path, trust_remote_code=trust_remote_code)
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _fits(prompt: Prompt, room: int | None, options: RolloutOptions) -> bool:
    length = len(prompt.token_ids)
    if room is None or length + options.max_new_tokens <= room:
        return True
    if options.on_overlong == "error":
        raise DataError(
            f"{prompt.where}: expected a prompt that leaves {options.max_new_tokens} of {room} tokens "
            f"(max_new_tokens, max_position_embeddings), got one of {length}"
        )
    return False


def _numerics(options: RolloutOptions, device: torch.device, dtype: str) -> dict[str, Any]:
    found = numerics(dtype, options.attn_implementation, None, device, tf32=options.tf32)
    if options.engine == "vllm":
        versions = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions(name="vllm")}
        found["versions"] |= versions
    return found
