"""Saves the student as an ordinary transformers folder."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from shards.cli.outside import naming, naming_saves
from shards.files import TEMPORARY_SUFFIX, erase, flush, matching, paths_under
from shards.format.writer import flush_files, write_text
from shards.locks.lock import require_held
from shards.modelfiles.find import ModelFolder
from student.load import load_model
from student.log.files import write_state
from student.runs.card import write_model_card

STAGED = f".student{TEMPORARY_SUFFIX}"
"""A folder in the output folder, of one name for all ranks."""
CONFIG_FILE = "config.json"
WEIGHTS_GLOB = "model*.safetensors*"


def save(trainer: Any, tokenizer: Any, source: ModelFolder) -> None:
    """Save weights (adapters merged), tokenizer, model card and the run's state. Raises OptionError for a full disk,
    CacheConflict if another command has the folder by now.

    The student is whole or has no config.json. source: what the student started from.
    """
    out = Path(trainer.args.output_dir)
    require_held(out)
    staged = out / STAGED
    with naming_saves(str(out)):
        if trainer.is_world_process_zero():
            write_state(out, trainer.state)
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir()
        trainer.accelerator.wait_for_everyone()
        _save_to(trainer, tokenizer, source, staged)
        trainer.accelerator.wait_for_everyone()
        if trainer.is_world_process_zero():
            write_model_card(trainer, staged)
            put_in_place(staged, out)
    if trainer.args.push_to_hub:
        with naming(f"{out}: done, but push_to_hub"):
            trainer.push_to_hub()


def save_evaluation(trainer: Any, figures: Mapping[str, float]) -> None:
    """Write what an evaluation found, under the names that Trainer.save_metrics gives it."""
    if trainer.is_world_process_zero():
        for file in ("eval_results.json", "all_results.json"):
            write_text(Path(trainer.args.output_dir), file, json.dumps(figures, indent=4, sort_keys=True))


def _save_to(trainer: Any, tokenizer: Any, source: ModelFolder, folder: Path) -> None:
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if trainer.is_fsdp_enabled:  # full weights, even if the checkpoints are sharded
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    if trainer.args.use_peft and sharded:
        _save_merged_again(trainer, tokenizer, source, folder)
    elif trainer.args.use_peft:
        trainer.distill_forward.restore()
        if trainer.is_world_process_zero():
            merged(trainer.accelerator.unwrap_model(trainer.model)).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    else:
        trainer.save_model(str(folder), _internal_call=True)  # not yet to the hub
        trainer.distill_forward.restore()


def put_in_place(staged: Path, out: Path) -> None:
    """Give the files of a student their names; its config.json is the first to go and the last to come."""
    flush_files(paths_under(staged))
    (out / CONFIG_FILE).unlink(missing_ok=True)
    names = sorted((path.name for path in staged.iterdir()), key=lambda name: (name == CONFIG_FILE, name))
    for old in matching(out, WEIGHTS_GLOB):  # of a student in another number of files
        if old.name not in names:
            old.unlink()
    for name in names:
        if (out / name).is_dir():
            erase(out / name)
        if name == CONFIG_FILE:
            flush(out)
        (staged / name).replace(out / name)
    flush(out)
    staged.rmdir()


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
