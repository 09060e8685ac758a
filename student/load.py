"""Loads a student's model and tokenizer from a folder or the hub; weights from safetensors only."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations import deepspeed
from transformers.utils import logging

from shards.errors import ModelError
from shards.modelfiles.adapter import load_adapter, merge, rounded
from shards.modelfiles.find import ModelFolder, read_tokenizer, resolve
from shards.modelfiles.folder import refusing, require_weights, require_whole, showing_load
from shards.modelfiles.head import probe_ids


def load_tokenizer(source: str | ModelFolder, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model; an adapter without one uses its base's. Raises ModelError."""
    return read_tokenizer(AutoTokenizer, _found(source), trust_remote_code=trust_remote_code)


def load_model(
    source: str | ModelFolder, *, dtype: str, attn_implementation: str | None = None, trust_remote_code: bool = False
) -> Any:
    """A causal language model: a full one, or the base of an adapter folder with the adapter merged into it.

    It is on the CPU, in dtype: float32, float16 or bfloat16. Raises ModelError.
    """
    folder = _found(source)
    kwargs: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    if attn_implementation is not None:
        kwargs["attn_implementation"] = attn_implementation
    if folder.base is None:
        return load_whole(folder, AutoModelForCausalLM, "a causal language model", **kwargs)
    try:
        base = load_model(folder.base, **kwargs | {"dtype": "float32"})
    except ModelError as exc:
        raise ModelError(f"{folder.name}: base of the adapter: {exc}") from exc
    model = rounded(_with_adapter(base, folder, trust_remote_code=trust_remote_code), getattr(torch, dtype))
    model.config._name_or_path = folder.name
    return model


def load_whole(source: str | ModelFolder, auto_class: Any, expected: str, **kwargs: Any) -> Any:
    """A full model of one of transformers' Auto classes, with all weights from the folder.

    expected: a description for messages; kwargs go to from_pretrained. Raises ModelError.
    """
    folder = _found(source)
    require_weights(folder.name, folder.path, "model")
    with refusing(folder.name, expected), _not_split(), showing_load(logging, folder.path, folder.name):
        model, info = auto_class.from_pretrained(
            folder.path, output_loading_info=True, ignore_mismatched_sizes=True, use_safetensors=True, **kwargs
        )
    require_whole(folder.name, info)
    model.config._name_or_path = folder.name  # a model card should not name the hub's cache
    return model


@contextlib.contextmanager
def _not_split() -> Iterator[None]:
    """Let transformers load whole weights on every rank: for ZeRO-3 it would split them before they are checked."""
    found = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if found is not None and found() is not None:
            deepspeed.set_hf_deepspeed_config(found())


def _found(source: str | ModelFolder) -> ModelFolder:
    return resolve(source) if isinstance(source, str) else source


def _with_adapter(base: Any, folder: ModelFolder, *, trust_remote_code: bool) -> Any:
    """A base with the adapter merged into it."""
    try:
        import peft
    except ImportError as exc:
        raise ModelError(f"{folder.name}: is a peft adapter; install aligndistil-offline[peft]") from exc
    tokens = len(load_tokenizer(folder, trust_remote_code=trust_remote_code)) if folder.has_tokenizer else None
    adapted = load_adapter(base.eval(), folder.path, folder.name, peft=peft, torch=torch, tokens=tokens)
    return merge(adapted, folder.name, _probe_logits).requires_grad_(True)  # because peft froze the base


@torch.no_grad()
def _probe_logits(model: Any) -> torch.Tensor:
    """A model's own logits on a few tokens, (T, V)."""
    ids_BT = torch.tensor([probe_ids(model.config.get_text_config().vocab_size)])
    return model(input_ids=ids_BT, use_cache=False).logits[0].float()
