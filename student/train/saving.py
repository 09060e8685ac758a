"""Saves the student as an ordinary transformers folder."""

from pathlib import Path
from typing import Any

import torch

from shards.cli.outside import naming, naming_saves
from shards.locks.lock import require_held
from shards.modelfiles.find import ModelFolder
from student.load import load_model


def save(trainer: Any, tokenizer: Any, source: ModelFolder) -> None:
    """Save weights (adapters merged), tokenizer, model card and the run's state. Raises OptionError for a full disk,
    CacheConflict if another command has the folder by now.

    source: what the student started from.
    """
    out = Path(trainer.args.output_dir)
    require_held(out)
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    with naming_saves(str(out)):
        trainer.save_state()
        if trainer.is_fsdp_enabled:  # full weights, even if the checkpoints are sharded
            trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        if trainer.args.use_peft and sharded:
            _save_merged_again(trainer, tokenizer, source, out)
        elif trainer.args.use_peft:
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


def _save_merged_again(trainer: Any, tokenizer: Any, source: ModelFolder, out: Path) -> None:
    """Gather sharded adapters on the first process, which loads the base once more, whole, and merges them into it.

    Not by way of an adapter folder: peft finds no adapter in layers that FSDP checkpoints, and writes an empty one.
    """
    args = trainer.args
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    trainer.distill_forward.restore()
    if not trainer.is_world_process_zero():
        return
    import peft

    base = load_model(source, dtype=args.dtype, trust_remote_code=args.trust_remote_code)
    adapted = peft.get_peft_model(base, trainer.model.peft_config["default"])
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[name])
    merged(adapted).save_pretrained(out)
    tokenizer.save_pretrained(out)


def merged(adapted: Any) -> Any:
    """The model with its adapters merged in float32: a base in bfloat16 would round most of their values away."""
    if any(p.is_floating_point() and torch.finfo(p.dtype).bits < 32 for p in adapted.parameters()):
        adapted = adapted.to("cpu", torch.float32)  # because the CPU has room for it
    return adapted.merge_and_unload()
