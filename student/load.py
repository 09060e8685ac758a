"""A student's model and tokenizer, out of a folder or from the hub; weights from safetensors only."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from shards.errors import ModelError, OptionError, first_line
from shards.model_folder import (
    adapter_base,
    refusing,
    require_folder,
    require_tokenizer,
    require_weights,
    require_whole,
)


def load_tokenizer(source: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model; an adapter without one has its base's. Raises ModelError."""
    base = adapter_base(source, Path(source))
    if base and not (Path(source) / "tokenizer_config.json").is_file():
        return load_tokenizer(base, trust_remote_code=trust_remote_code)
    require_folder(source)
    if Path(source).is_dir():
        require_tokenizer(source, Path(source))
    with refusing(source, "a model folder, or a hub name, with a tokenizer"):
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)


def load_model(
    source: str, *, dtype: str, attn_implementation: str | None = None, trust_remote_code: bool = False
) -> Any:
    """A causal language model: a full one, or the base of an adapter folder with the adapter merged into it.

    On the CPU, in dtype: float32, bfloat16 or auto (as stored). Raises ModelError.
    """
    kwargs: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    if attn_implementation is not None:
        kwargs["attn_implementation"] = attn_implementation
    base_name = adapter_base(source, Path(source))
    if base_name is None:
        return load_whole(source, AutoModelForCausalLM, "a causal language model", **kwargs)
    try:
        base = load_model(base_name, **kwargs)
    except ModelError as exc:
        raise ModelError(f"{source}: base of the adapter: {exc}") from exc
    with refusing(source, "a peft adapter for its base"):
        from peft import PeftConfig, PeftModelForCausalLM

        adapted = PeftModelForCausalLM(base, PeftConfig.from_pretrained(source))
        found = adapted.load_adapter(source, "default")
    require_whole(source, {"missing_keys": found.missing_keys})
    return adapted.merge_and_unload().requires_grad_(True)  # peft froze the base


def load_whole(source: str, auto_class: Any, expected: str, **kwargs: Any) -> Any:
    """A model of one of transformers' Auto classes, none of whose weights is made up.

    expected: what it should be, in words; kwargs go to from_pretrained. Raises ModelError.
    """
    require_folder(source)
    if Path(source).is_dir():
        require_weights(source, Path(source), "model")
    with refusing(source, expected):
        model, info = auto_class.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, use_safetensors=True, **kwargs
        )
    require_whole(source, info)
    return model


def device_named(name: str) -> torch.device:
    """`auto` is the GPU where there is one, else the processor. Raises OptionError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as exc:  # a name that torch does not know, a device that is not here
        raise OptionError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r} ({first_line(exc)})") from exc
