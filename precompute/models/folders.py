"""Loads the models and tokenizers of all roles, and says what each is (its identity)."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from precompute.models.adapters import peft_of, shares_base
from precompute.models.role_model import RoleModel, own_logits
from shards.cli.device import resolve_dtype
from shards.format.schema import Role
from shards.modelfiles.adapter import load_adapter, merge, rounded
from shards.modelfiles.find import ModelFolder, fingerprint, read_tokenizer
from shards.modelfiles.folder import refusing, require_whole, showing_load
from shards.modelfiles.vocabulary import require_same_vocabulary

if TYPE_CHECKING:  # it takes two seconds to import
    from transformers import PreTrainedModel


def identity(folder: ModelFolder, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """The identity of a model: its fingerprint and width, and for an adapter the version of peft."""
    facts = fingerprint(folder)
    if folder.base:
        base = identity(folder.base, trust_remote_code=trust_remote_code)
        return facts | {"base": base, "peft_version": peft_of(folder.name).__version__}
    with refusing(folder.name, "a model that transformers knows"):
        known = AutoConfig.from_pretrained(folder.path, trust_remote_code=trust_remote_code).get_text_config()
    return facts | {"vocabulary_width": known.vocab_size}


def load_tokenizer(folder: ModelFolder, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a role; an adapter without one uses its base's. Raises ModelError if there is none."""
    return read_tokenizer(AutoTokenizer, folder, trust_remote_code=trust_remote_code)


def check_vocabularies(tokenizers: Mapping[Role, Any]) -> dict[str, int]:
    """The token-to-id map shared by all roles. Raises VocabularyMismatch naming the first token that differs."""
    maps = {role: tokenizer.get_vocab() for role, tokenizer in tokenizers.items()}
    first_role, first = next(iter(maps.items()))
    for role, other in maps.items():
        require_same_vocabulary(first, other, first_role, role)
    return dict(sorted(first.items(), key=lambda item: (item[1], item[0])))


def load_models(
    folders: Mapping[Role, ModelFolder],
    vocabulary_size: int,
    *,
    dtype: str,
    device: str,
    one_at_a_time: bool = False,
    apart: bool = False,
    **kwargs: Any,
) -> dict[Role, RoleModel]:
    """Load every role; roles with adapters that leave their base unchanged share it (`shares_base`). Raises ModelError.

    dtype: float32, float16, bfloat16 or auto (`resolve_dtype`), for all roles; one_at_a_time: bodies stay in host
    memory, and only the output layers go to the device; apart: no two roles share anything. kwargs go to
    from_pretrained (device_map, attn_implementation, trust_remote_code).
    """
    dtype = resolve_dtype(dtype, torch.device(device))
    places = {
        role: role if apart or not shares_base(folder) else (folder.base or folder).path.resolve()
        for role, folder in folders.items()
    }
    bases: dict[Role | Path, Any] = {}
    bare: dict[Role | Path, torch.Tensor] = {}
    adapted: dict[Role | Path, Any] = {}
    own: dict[Role, torch.Tensor] = {}
    for role, folder in folders.items():
        place, base = places[role], folder.base or folder
        if place not in bases:
            bases[place] = _load_full(role, base, dtype=dtype, device="cpu" if one_at_a_time else device, **kwargs)
            bare[place] = own_logits(bases[place], vocabulary_size)
        own[role] = bare[place]
        if folder.base:
            adapted[place] = _add_adapter(bases[place], folder, role, name=role, onto=adapted.get(place), **kwargs)
            adapted[place].set_adapter(role, inference_mode=True)
            own[role] = own_logits(adapted[place], vocabulary_size)
    return {
        role: RoleModel(
            role,
            bases[places[role]],
            vocabulary_size,
            own_logits_TV=own[role],
            peft_model=None if places[role] == role else adapted.get(places[role]),
            adapted=folder.base is not None,
            head_device=device if one_at_a_time else None,
        )
        for role, folder in folders.items()
    }


def load_merged(folder: ModelFolder, who: str, *, dtype: str, device: str, **kwargs: Any) -> "PreTrainedModel":
    """One model for training or sampling; an adapter is merged into its base. Raises ModelError, naming `who`.

    dtype, device and kwargs as in `load_models`. The merging is done in float32 in host memory (`rounded`).
    """
    dtype = resolve_dtype(dtype, torch.device(device))
    if folder.base is None:
        return _load_full(who, folder, dtype=dtype, device=device, **kwargs)
    attention = kwargs.pop("attn_implementation", None)  # flash attention has no float32, and none on a CPU
    model = _load_full(who, folder.base, dtype="float32", device="cpu", **kwargs)
    adapted = _add_adapter(model, folder, who, name="default", onto=None, **kwargs)
    width = model.config.get_text_config().vocab_size
    merged = merge(adapted, f"{who} ({folder.name})", functools.partial(own_logits, vocabulary_size=width))
    merged = rounded(merged.requires_grad_(True), getattr(torch, dtype))  # trainable, because peft froze the base
    if attention is not None:
        merged.set_attn_implementation(attention)
    return merged if kwargs.get("device_map") is not None else merged.to(device)


def _load_full(role: str, folder: ModelFolder, *, dtype: str, device: str, **kwargs: Any) -> "PreTrainedModel":
    """A full model. If the base of an adapter is an adapter itself, it is merged."""
    if folder.base:
        return load_merged(folder, role, dtype=dtype, device=device, **kwargs).requires_grad_(False)
    given = {key: value for key, value in kwargs.items() if value is not None}
    who = f"{role} ({folder.name})"
    with refusing(who, "a causal language model"), showing_load(logging, folder.path, who):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder.path,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **given,
        )
    model, info = loaded
    require_whole(who, info)
    return model.eval() if "device_map" in given else model.to(device).eval()


def _add_adapter(
    base: "PreTrainedModel", folder: ModelFolder, role: str, *, name: str, onto: Any, **kwargs: Any
) -> Any:
    """The PeftModel of a base with one (more) adapter; the base is enlarged for the adapter's own tokenizer."""
    who, tokens = f"{role} ({folder.name})", None
    if folder.has_tokenizer:
        tokens = len(load_tokenizer(folder, trust_remote_code=bool(kwargs.get("trust_remote_code"))))
    return load_adapter(base, folder.path, who, peft=peft_of(who), torch=torch, name=name, onto=onto, tokens=tokens)
