"""Saves the student as an ordinary transformers folder."""

from pathlib import Path
from typing import Any

import torch

from shards.cli.outside import naming, naming_saves


def save(trainer: Any, tokenizer: Any) -> None:
    """Save weights (adapters merged), tokenizer, model card and the run's state. Raises OptionError for a full disk."""
    out = Path(trainer.args.output_dir)
    with naming_saves(str(out)):
        trainer.save_state()
        if trainer.is_fsdp_enabled:  # full weights, even if the checkpoints are sharded
            trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        if trainer.args.use_peft and not trainer.is_fsdp_enabled and not trainer.is_deepspeed_enabled:
            trainer.distill_forward.restore()
            if trainer.is_world_process_zero():
                merged(trainer.accelerator.unwrap_model(trainer.model)).save_pretrained(out)
                tokenizer.save_pretrained(out)
        else:
            trainer.save_model(str(out))
            trainer.distill_forward.restore()
        trainer.create_model_card()
    if trainer.args.push_to_hub:
        with naming(f"{out}: done, but push_to_hub"):
            trainer.push_to_hub()


def merged(adapted: Any) -> Any:
    """The model with its adapters merged in float32: a base in bfloat16 would round most of their values away."""
    if any(p.is_floating_point() and torch.finfo(p.dtype).bits < 32 for p in adapted.parameters()):
        adapted = adapted.to("cpu", torch.float32)  # because the CPU has room for it
    return adapted.merge_and_unload()
