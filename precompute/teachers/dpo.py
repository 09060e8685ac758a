"""Trains dpo or reverse with TRL's DPOTrainer: continues from its last checkpoint, publishes it when complete."""

import copy
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from precompute.models.folders import load_merged, load_tokenizer
from precompute.models.made_from import MADE_FROM_FILE
from precompute.teachers.arguments import DPOArguments
from precompute.teachers.before import (
    GENERATION_FILE,
    StepsThatMove,
    carry_generation_config,
    require_mergeable,
    try_saving,
)
from precompute.teachers.card import write_card
from precompute.teachers.folders import last_checkpoint, remove_training, training_folder
from precompute.teachers.moved import measure_moved, rewards_text
from precompute.teachers.options import TeacherOptions
from precompute.teachers.pairs import TokenizedPair, dpo_dataset
from precompute.teachers.trainer import StepsShown, TeacherTrainer
from shards.cli.outside import naming_saves
from shards.errors import OptionError
from shards.files import make_folder
from shards.format.schema import Role
from shards.format.writer import publish_folder, write_json
from shards.modelfiles.adapter import lora_config
from shards.modelfiles.find import ModelFolder
from shards.modelfiles.generation import keep_generation_config
from shards.modelfiles.trained_precision import require_float32
from shards.say import say, warn


def train_role(
    role: Role,
    pairs: Sequence[TokenizedPair],
    reference: ModelFolder,
    record: Mapping[str, Any],
    options: TeacherOptions,
    args: DPOArguments,
    *,
    callbacks: Sequence[TrainerCallback] = (),
) -> None:
    """Train OUT/ROLE and publish it, with `callbacks` on the training. Raises AlignDistilError."""
    out = Path(options.out)
    work = training_folder(out, role)
    checkpoint, _ = last_checkpoint(work, record)
    with naming_saves(str(work)):
        make_folder(work)
    trainer = _trainer(role, pairs, reference, record, options, _of_role(args, role, work))
    tokenizer = load_tokenizer(reference, trust_remote_code=args.trust_remote_code)
    _require_ready(trainer, tokenizer, work, options)
    StepsShown(role).take_place(trainer)
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train(str(checkpoint) if checkpoint else None)
    with naming_saves(str(work / "model")):
        _save(trainer, work / "model", options)
        if trainer.is_world_process_zero():
            tokenizer.save_pretrained(work / "model")  # unchanged: TRL may have added a pad token to its own
            carry_generation_config(reference, work / "model")
            write_card(work / "model", record, reference.name)
            moved = measure_moved(work / "model", None if reference.base else reference.path, role)
            if went := f"{rewards_text(trainer.state.log_history)}{moved}".removesuffix("; "):
                say(f"{out / role}: {went}")
            write_json(work / "model", MADE_FROM_FILE, record)
            publish_folder(work / "model", out / role)
            remove_training(work)
    args.distributed_state.wait_for_everyone()


def _require_ready(trainer: TeacherTrainer, tokenizer: Any, work: Path, options: TeacherOptions) -> None:
    """Raise OptionError now for what would make the training fail at its end."""
    require_float32(trainer.model)
    if options.use_peft:
        require_mergeable(trainer.model)
    model: Any = trainer.model
    model = model.get_base_model() if options.use_peft else model
    if (fault := keep_generation_config(model)) and trainer.is_world_process_zero():
        warn(f"{GENERATION_FILE} is carried over as it is, though {fault}")
    if trainer.is_world_process_zero():
        try_saving(model, tokenizer, work)


def _of_role(args: DPOArguments, role: Role, work: Path) -> DPOArguments:
    mine = copy.copy(args)
    mine.output_dir = str(work)
    mine.run_name = f"{args.run_name}-{role}" if args.run_name else role
    return mine


def _trainer(
    role: Role,
    pairs: Sequence[TokenizedPair],
    reference: ModelFolder,
    record: Mapping[str, Any],
    options: TeacherOptions,
    args: DPOArguments,
) -> TeacherTrainer:
    given: dict[str, Any] = {
        "dtype": options.dtype,
        "device": "cpu",
        "attn_implementation": options.attn_implementation,
        "trust_remote_code": args.trust_remote_code,
    }
    model = load_merged(reference, "reference", **given)
    if not options.use_peft:
        require_float32(model)
    use_cache = getattr(model.config, "use_cache", None)
    # without its adapter, or before its first step, the model is its own reference
    alone = options.use_peft or args.precompute_ref_log_probs
    tell = say if args.distributed_state.is_main_process else lambda text: None
    trainer = TeacherTrainer(
        record=record,
        model=model,
        ref_model=None if alone else load_merged(reference, "reference", **given),
        args=args,
        train_dataset=dpo_dataset(pairs, swap=role == "reverse"),
        processing_class=load_tokenizer(reference, trust_remote_code=args.trust_remote_code),
        callbacks=[StepsThatMove(tell, lora=options.use_peft)],
        peft_config=_lora_config(options) if options.use_peft else None,
    )
    model.config.use_cache = use_cache  # Trainer changes it in the config that is saved
    if options.use_peft and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise OptionError("use_peft: expected no FSDP or DeepSpeed, under which adapters cannot be merged, got one")
    return trainer


def _lora_config(options: TeacherOptions) -> Any:
    try:
        import peft
    except ImportError as exc:
        raise OptionError("use_peft: expected peft to be installed; install aligndistil-offline[peft]") from exc
    return lora_config(peft, options)


def _save(trainer: TeacherTrainer, folder: Path, options: TeacherOptions) -> None:
    """Write the weights, adapters merged, and the config into a new folder."""
    if trainer.is_world_process_zero():
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed while saving
        folder.mkdir(parents=True)
    trainer.accelerator.wait_for_everyone()
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        if trainer.is_fsdp_enabled:  # full weights, even if the checkpoints are sharded
            trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        trainer.save_model(str(folder))
    elif trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model)
        if options.use_peft:  # in float32: most of what adapters add is below bfloat16's precision
            model = model.cpu().float().merge_and_unload()
        model.save_pretrained(folder)
