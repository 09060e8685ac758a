"""Refuses launches under which a run would silently be another one, lose its adapters, or not read its checkpoint."""

import os
from pathlib import Path
from typing import Any

from shards.errors import OptionError

ASKED = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}
"""Variables of accelerate's launcher, and what they ask for."""


def require_as_launched(trainer: Any) -> None:
    """Raise OptionError for a launch whose sharding accelerate left out, and for adapters that it would not save."""
    found = {"FSDP": trainer.is_fsdp_enabled, "DeepSpeed": trainer.is_deepspeed_enabled}
    for variable, name in ASKED.items():
        asked = os.environ.get(variable, "").lower() == "true" and "RANK" in os.environ  # else of an earlier training
        if asked and not found[name]:
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


def require_same_sharding(trainer: Any, checkpoint: Path) -> None:
    """Raise OptionError for a checkpoint that this launch cannot read: its weights are divided in another way."""
    mine, found = _of_run(trainer), _of_checkpoint(checkpoint)
    if mine != found:
        raise OptionError(f"{checkpoint}: expected a checkpoint of {mine}, as this launch, got one of {found}")


def _of_run(trainer: Any) -> str:
    if trainer.is_fsdp_enabled:
        return f"FSDP, {trainer.accelerator.state.fsdp_plugin.state_dict_type.name}"
    return f"DeepSpeed on {trainer.args.world_size} processes" if trainer.is_deepspeed_enabled else "whole weights"


def _of_checkpoint(folder: Path) -> str:
    if any(folder.glob("pytorch_model_fsdp*")):
        return f"FSDP, {'FULL' if (folder / 'pytorch_model_fsdp.bin').is_file() else 'SHARDED'}_STATE_DICT"
    parts = len(list(folder.glob("global_step*/*_optim_states.pt")))
    return f"DeepSpeed on {parts} processes" if parts else "whole weights"
