"""What a rollout reads before any model is loaded: the model's folder, the prompts, and what the samples depend on."""

import hashlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig

from precompute.models import ModelFolder, identity, load_tokenizer, resolve
from precompute.plan import numerics, resolve_device
from precompute.prompts import Prompt, load_prompts
from precompute.rollout_options import RolloutOptions
from precompute.sampling import Request, Sampling
from shards.errors import DataError, ModelError
from shards.manifest import canonical_json
from shards.model_folder import refusing


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """`prompts`: those that fit into the model, by their number; `skipped`: how many do not. notes: of the data."""

    folder: ModelFolder
    tokenizer: Any
    prompts: dict[int, Prompt]
    skipped: int
    notes: Sequence[str]
    sampling: Sampling
    device: torch.device
    identity: dict[str, Any]

    def requests(self, num_samples: int) -> list[Request]:
        """All samples, those of the longest prompts first: batches are little padded, and the first is the largest."""
        order = sorted(self.prompts.values(), key=lambda prompt: (-len(prompt.token_ids), prompt.id))
        return [
            Request(prompt=prompt.id, sample=sample, token_ids=prompt.token_ids)
            for prompt in order
            for sample in range(num_samples)
        ]


def read_inputs(options: RolloutOptions) -> Inputs:
    """Find the model, tokenise the prompts, and say what the samples depend on."""
    folder = resolve(options.model)
    trust = options.trust_remote_code
    tokenizer = load_tokenizer(folder, trust_remote_code=trust)
    found = load_prompts(options.sources, tokenizer=tokenizer)
    room = _room(folder, trust_remote_code=trust)
    prompts = {prompt.id: prompt for prompt in found.prompts if _fits(prompt, room, options)}
    if not prompts:
        raise DataError(f"{options.sources}: no prompt leaves room for {options.max_new_tokens} tokens out of {room}")
    device = resolve_device(options.device, 0)
    vocabulary = tokenizer.get_vocab()
    sampling = Sampling(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        seed=options.seed,
        end_ids=end_ids(folder, tokenizer),
        vocabulary_size=max(vocabulary.values()) + 1,
    )
    texts = {"vocabulary_sha256": vocabulary, "chat_template_sha256": tokenizer.chat_template}
    return Inputs(
        folder=folder,
        tokenizer=tokenizer,
        prompts=prompts,
        skipped=len(found.prompts) - len(prompts),
        notes=found.notes,
        sampling=sampling,
        device=device,
        identity={
            "options": options.identity(),
            "model": identity(folder, trust_remote_code=trust),
            "tokenizer": {name: hashlib.sha256(canonical_json(text)).hexdigest() for name, text in texts.items()},
            "end_ids": list(sampling.end_ids),
            "data": {"prompts_sha256": found.sha256},
            "numerics": _numerics(options, device),
        },
    )


def end_ids(folder: ModelFolder, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end a response: the tokenizer's end-of-sequence token and those that the model's folder names.

    Raises ModelError where there is none.
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
    """Positions of the model; None where it has no limit."""
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


def _numerics(options: RolloutOptions, device: torch.device) -> dict[str, Any]:
    found = numerics(options.dtype, options.attn_implementation, None, device)
    if options.engine == "vllm":
        versions = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions(name="vllm")}
        found["versions"] |= versions
    return found
