"""Which roles may share an adapter's base; refuses an adapter if peft is not installed."""

from types import ModuleType

from safetensors import safe_open

from shards.errors import ModelError
from shards.files import matching
from shards.modelfiles.adapter import is_set
from shards.modelfiles.find import ModelFolder
from shards.modelfiles.folder import ADAPTER_CONFIG, read_config, refusing

_FREE = frozenset(
    (
        *("peft_type", "peft_version", "task_type", "auto_mapping", "inference_mode", "revision"),
        *("base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "use_rslora", "fan_in_fan_out"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern"),
        *("alpha_pattern", "init_lora_weights", "megatron_core", "qalora_group_size"),
    )
)
"""LoRA config fields that say where its matrices are and how they are scaled, or that have no effect."""


def peft_of(who: str) -> ModuleType:
    """The package peft. Raises ModelError if it is not installed."""
    try:
        import peft
    except ImportError as exc:
        raise ModelError(f"{who}: is a peft adapter; install aligndistil-offline[peft]") from exc
    return peft


def shares_base(folder: ModelFolder) -> bool:
    """Whether other roles can use the same base: yes for a full model, and for a LoRA that only adds its matrices.

    This lists what is allowed, not what is forbidden: biases, modules to save, resized embeddings, residual starts
    (PiSSA) and replicated layers change the base itself. Any kind unknown here gets a separate base.
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
    for path in matching(folder.path, "adapter_model*.safetensors"):
        with refusing(folder.name, "safetensors that can be read"), safe_open(path, "np") as file:
            found += file.keys()
    return found
