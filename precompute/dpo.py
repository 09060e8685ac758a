"""Trains dpo or reverse with TRL's DPOTrainer: from its last checkpoint if there is one, published when it is whole."""

import copy
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from trl import DPOTrainer

from precompute.dpo_arguments import DPOArguments
from precompute.made_from import MADE_FROM_FILE
from precompute.models import ModelFolder, load_merged, load_tokenizer
from precompute.pairs import TokenizedPair, dpo_dataset
from precompute.teacher_card import write_card
from precompute.teacher_folders import last_checkpoint, remove_training, training_folder
from precompute.teacher_options import TeacherOptions
from shards.errors import OptionError, first_line
from shards.schema import Role
from shards.writer import publish_folder, write_json


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
    """Train OUT/ROLE and publish it; `callbacks` watch the training. Raises AlignDistilError."""
    out = Path(options.out)
    work = training_folder(out, role)
    checkpoint = last_checkpoint(work, record)
    trainer = _trainer(role, pairs, reference, record, options, _of_role(args, role, work))
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    _save(trainer, work / "model", options)
    if trainer.is_world_process_zero():
        tokenizer = load_tokenizer(reference, trust_remote_code=args.trust_remote_code)
        tokenizer.save_pretrained(work / "model")  # as it was: TRL may have given its own a pad token
        write_card(work / "model", record, reference.name)
        write_json(work / "model", MADE_FROM_FILE, record)
        publish_folder(work / "model", out / role)
        remove_training(work)
    args.distributed_state.wait_for_everyone()


class _Trainer(DPOTrainer):
    """A DPOTrainer whose data are token ids already."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


class _Sign(TrainerCallback):
    """Puts the record of the inputs into every checkpoint, once it is whole."""

    def __init__(self, record: Mapping[str, Any], args: DPOArguments) -> None:
        self.record, self.processes = record, args.distributed_state

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.processes.wait_for_everyone()  # each has its own random state to save
        if state.is_world_process_zero:
            write_json(Path(args.output_dir) / f"checkpoint-{state.global_step}", MADE_FROM_FILE, self.record)


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
) -> DPOTrainer:
    given: dict[str, Any] = {
        "dtype": options.dtype,
        "device": "cpu",
        "attn_implementation": options.attn_implementation,
        "trust_remote_code": args.trust_remote_code,
    }
    model = load_merged(reference, "reference", **given)
    use_cache = getattr(model.config, "use_cache", None)
    # without its adapter, or before its first step, the model is its own reference
    alone = options.use_peft or args.precompute_ref_log_probs
    try:
        trainer = _Trainer(
            model=model,
            ref_model=None if alone else load_merged(reference, "reference", **given),
            args=args,
            train_dataset=dpo_dataset(pairs, swap=role == "reverse"),
            processing_class=load_tokenizer(reference, trust_remote_code=args.trust_remote_code),
            callbacks=[_Sign(record, args)],
            peft_config=_lora_config(options) if options.use_peft else None,
        )
    except (ValueError, NotImplementedError, ImportError) as exc:
        raise OptionError(f"DPOTrainer: {first_line(exc)}") from exc
    model.config.use_cache = use_cache  # Trainer puts its own into the config that is saved
    if options.use_peft and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise OptionError("use_peft: expected no FSDP or DeepSpeed, under which adapters cannot be merged, got one")
    return trainer


def _lora_config(options: TeacherOptions) -> Any:
    try:
        from peft import LoraConfig
    except ImportError as exc:
        raise OptionError("use_peft: expected peft to be installed; install aligndistil-offline[peft]") from exc
    wanted = options.lora_target_modules
    return LoraConfig(
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules="all-linear" if wanted in (None, ["all-linear"]) else wanted,
        task_type="CAUSAL_LM",
    )


def _save(trainer: DPOTrainer, folder: Path, options: TeacherOptions) -> None:
    """Write the weights, adapters merged, and the config into a new folder."""
    if trainer.is_world_process_zero():
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed while it saved
        folder.mkdir(parents=True)
    trainer.accelerator.wait_for_everyone()
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        if trainer.is_fsdp_enabled:  # whole weights, whatever the checkpoints hold
            trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        trainer.save_model(str(folder))
    elif trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model)
        (model.merge_and_unload() if options.use_peft else model).save_pretrained(folder)
