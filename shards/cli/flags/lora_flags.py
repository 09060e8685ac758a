"""The flags of LoRA adapters, the same in both trainings."""

from dataclasses import dataclass

from shards.cli.command import flag


@dataclass(kw_only=True)
class LoraFlags:
    """Fields of the options of a training; `shards.modelfiles.adapter.lora_config` reads them."""

    lora_r: int = flag(16, "rank of the adapters")
    lora_alpha: int = flag(32, "scale of the adapters")
    lora_dropout: float = flag(0.0, "dropout of the adapters")
    lora_target_modules: list[str] | None = flag(None, "modules to adapt; default: all linear layers of the body")
