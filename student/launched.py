"""Refuses settings of a launcher under which a run would silently be another one, or lose its adapters."""

import os
from typing import Any

from shards.errors import OptionError

ASKED = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}
"""Variables of accelerate's launcher, and what they ask for."""


def require_as_launched(trainer: Any) -> None:
    """Raise OptionError for a launch whose sharding accelerate left out, and for adapters that it would not save."""
    found = {"FSDP": trainer.is_fsdp_enabled, "DeepSpeed": trainer.is_deepspeed_enabled}
    for variable, name in ASKED.items():
        if os.environ.get(variable, "").lower() == "true" and not found[name]:
            raise OptionError(
                f"{name}: expected what the launcher asks for, got plain processes on "
                f"{trainer.args.device.type}, where accelerate leaves it out; launch with examples/launch/ddp.yaml"
            )
    plugin = trainer.accelerator.state.fsdp_plugin if trainer.is_fsdp_enabled else None
    if plugin is not None and plugin.activation_checkpointing and trainer.args.use_peft:
        raise OptionError(
            "fsdp_activation_checkpointing: expected false with use_peft, because peft finds no adapters to save in "
            "such layers, got true; give --gradient_checkpointing true instead"
        )
