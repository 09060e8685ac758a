"""Adapters of roles: peft itself, and whether an adapter leaves its base alone, so that other roles may use it too."""

from types import ModuleType

from safetensors import safe_open

from shards.adapter import is_set
from shards.errors import ModelError
from shards.find_model import ModelFolder
from shards.model_folder import ADAPTER_CONFIG, read_config, refusing

_FREE = frozenset(
    (
        *("peft_type", "peft_version", "task_type", "auto_mapping", "inference_mode", "revision"),
        *("base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "use_rslora", "fan_in_fan_out"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern"),
        *("alpha_pattern", "init_lora_weights", "megatron_core", "qalora_group_size"),
    )
)
"""Fields of a LoRA's config that say where its matrices are and how they are scaled, or that nothing reads."""


def peft_of(who: str) -> ModuleType:
    """The package peft. Raises ModelError where it is not installed."""
    try:
        import peft
    except ImportError as exc:
        raise ModelError(f"{who}: is a peft adapter; install aligndistil-offline[peft]") from exc
    return peft


def shares_base(folder: ModelFolder) -> bool:
    """Whether other roles may use the same base: a full model's weights, and a LoRA that only adds its own matrices.

    A list of what may, not of what may not: biases, modules to save, resized embeddings, residual starts (PiSSA) and
    replicated layers change the base itself, and whatever peft invents next has a base of its own until it is here.
    """
    if folder.base is None:
        return True
    config = read_config(folder.name, folder.path / ADAPTER_CONFIG)
    others = [name for name, value in config.items() if name not in _FREE and is_set(value)]
    plain = config.get("peft_type") == "LORA" and config.get("init_lora_weights", True) in (True, False, "gaussian")
    return plain and not others and all(".lora_" in key for key in _keys(folder))


def _keys(folder: ModelFolder) -> list[str]:
    """Names of the adapter's weights."""
    found: list[str] = []
    for path in folder.path.glob("adapter_model*.safetensors"):
        with refusing(folder.name, "safetensors that can be read"), safe_open(path, "np") as file:
            found += file.keys()
    return found
