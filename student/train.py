"""python -m student.train: a cache and a student -> a distilled model."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from transformers import HfArgumentParser, set_seed
from transformers.trainer_utils import get_last_checkpoint

from shards import ShardCache
from shards.command import OneLineErrors, run_command
from shards.describe_trust import sampled, trust_lines
from shards.errors import CacheMissing, ModelError, OptionError, first_line
from shards.model_folder import weights_sha256
from shards.sample import chunks, spread
from shards.trust import assess
from student.data import CachedResponses
from student.forward import base_model
from student.learned import fit_strength
from student.load import load_model, load_tokenizer
from student.options import DistillArguments
from student.ranks import require_same_inputs
from student.trainer import DistillTrainer

SAMPLE_ROWS = 200
"""Responses on which the teacher is measured before the first step: some ten thousand positions, a second or two."""


def train(args: DistillArguments) -> DistillTrainer:
    """Train a student and save it with tokenizer and model card. Raises AlignDistilError."""
    set_seed(args.seed)
    train_data = CachedResponses(args.shards, train_on=args.train_on)
    fit_strength(args, train_data)
    train_data = train_data.for_teacher(args.spec)
    eval_data = CachedResponses(args.eval_shards, train_on=args.train_on) if args.eval_shards else None
    source = args.model or _reference_of(train_data.caches[0])
    if Path(source).resolve() == Path(args.output_dir or ".").resolve():
        raise OptionError(f"output_dir: expected another folder than the student's own, got {args.output_dir}")
    _require_unused(args)
    require_same_inputs(args, [*train_data.caches, *(eval_data.caches if eval_data else ())], source)
    tokenizer = load_tokenizer(source, trust_remote_code=args.trust_remote_code)
    model = load_model(
        source,
        dtype=args.dtype,
        attn_implementation=args.attn_implementation,
        trust_remote_code=args.trust_remote_code,
    )
    trainer = DistillTrainer(
        model=_add_lora(model, args),
        args=args,
        train_dataset=train_data,
        eval_dataset=eval_data,
        processing_class=tokenizer,
    )
    if trainer.is_world_process_zero():
        print(_plan_text(trainer, source))
    trainer.train(resume_from_checkpoint=_checkpoint(args))
    if eval_data is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    save(trainer, tokenizer)
    if trainer.is_world_process_zero():
        print(f"{args.output_dir}: done, after {trainer.state.global_step:,} steps")
    return trainer


def _require_unused(args: DistillArguments) -> None:
    """Raise OptionError where the output folder holds a model or checkpoints that this run does not go on from."""
    out = Path(args.output_dir or ".")
    if args.overwrite_output_dir or _checkpoint(args) or int(os.environ.get("RANK", "0")) > 0:
        return
    found = sorted(path.name for pattern in ("config.json", "checkpoint-*") for path in out.glob(pattern))
    if found:
        raise OptionError(
            f"output_dir: expected a folder without a model, found {found[0]} in {out}; give another one, "
            "--resume_from_checkpoint true or --overwrite_output_dir true"
        )


def _plan_text(trainer: DistillTrainer, source: str) -> str:
    """Student, data, teacher and steps, before the work."""
    args, data = trainer.args, trainer.train_dataset
    order = trainer.sampler.global_batch_size
    lines = {
        "student": source,
        "responses": f"{len(data):,} ({args.train_on}) from {', '.join(str(cache.folder) for cache in data.caches)}",
        "teacher": str(args.spec),
        "loss": f"{args.divergence}, mean by {args.reduction}; {_loss_path(trainer)}",
        "steps": f"{trainer.num_steps:,}, each of {order:,} responses",
        **_trust_lines(trainer),
    }
    indented = {name: text.replace("\n", "\n" + " " * 12) for name, text in lines.items()}
    return "\n".join(f"{name:>10}  {text}" for name, text in indented.items())


def _loss_path(trainer: DistillTrainer) -> str:
    """How the output layer's gradient is computed, and where it costs a fourth matrix product why."""
    reason = trainer.distill_forward.why_not_fused
    return "gradient on the way forward" if reason is None else f"logits computed twice, since {reason}"


def _trust_lines(trainer: DistillTrainer) -> dict[str, str]:
    """Whether the cache is good for the run's teacher, on some of the rows that it trains on."""
    data = trainer.train_dataset
    rows = spread(len(data), SAMPLE_ROWS)
    parts = map(data.scores, chunks(rows, "measuring the teacher"))
    trust = assess(parts, trainer.args.spec, data.nodes, data.caches[0].plan.vocabulary_size)
    return trust_lines(trust, sampled(len(rows), len(data)))


def save(trainer: DistillTrainer, tokenizer: Any) -> None:
    """An ordinary transformers folder: weights (adapters merged), tokenizer, model card."""
    trainer.save_state()
    out = Path(trainer.args.output_dir or ".")
    if trainer.is_fsdp_enabled:  # whole weights, whatever the checkpoints hold
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    if trainer.args.use_peft and not trainer.is_fsdp_enabled and not trainer.is_deepspeed_enabled:
        trainer.distill_forward.restore()
        if trainer.is_world_process_zero():
            trainer.accelerator.unwrap_model(trainer.model).merge_and_unload().save_pretrained(out)
            tokenizer.save_pretrained(out)
    else:
        trainer.save_model(str(out))
        trainer.distill_forward.restore()
    trainer.create_model_card()
    if trainer.args.push_to_hub:
        trainer.push_to_hub()


def _reference_of(cache: ShardCache) -> str:
    """The reference that the cache was built with. Raises ModelError where it is gone, or not the same any more."""
    try:
        source = str(cache.provenance["models"]["reference"])
    except (CacheMissing, KeyError, TypeError) as exc:
        raise ModelError(f"{cache.folder}: expected the place of its reference, found none; give --model") from exc
    if Path(source).is_absolute() and not Path(source).is_dir():
        raise ModelError(f"{cache.folder}: was built with the reference {source}, which is not there; give --model")
    recorded = cache.plan.identity["models"]["reference"]
    stem = "adapter_model" if "base" in recorded else "model"
    if Path(source).is_dir() and weights_sha256(Path(source), stem) != recorded["weights_sha256"]:
        raise ModelError(
            f"{cache.folder}: expected the reference {source} as it was scored, got other weights; give --model"
        )
    return source


def _add_lora(model: Any, args: DistillArguments) -> Any:
    if not args.use_peft:
        return model
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as exc:
        raise OptionError("use_peft: expected peft to be installed; install aligndistil-offline[peft]") from exc
    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules="all-linear" if args.lora_target_modules in (None, ["all-linear"]) else args.lora_target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as exc:
        raise OptionError(f"lora_target_modules: {first_line(exc)}") from exc
    if args.gradient_checkpointing:
        base_model(adapted).enable_input_require_grads()
    return adapted


def _checkpoint(args: DistillArguments) -> str | None:
    """The checkpoint that --resume_from_checkpoint names; `true` is the last one in the output folder, if any."""
    wanted, out = args.resume_from_checkpoint, args.output_dir or "."
    if wanted is None or str(wanted).lower() == "false":
        return None
    if str(wanted).lower() == "true":
        return get_last_checkpoint(out) if Path(out).is_dir() else None
    if not Path(wanted).is_dir():
        raise OptionError(f"resume_from_checkpoint: expected a folder, got {wanted!r}")
    return str(wanted)


def leave_processes() -> None:
    """Wait for the other ranks, then part from them.

    A rank that ends while a thread of its process group still holds a tensor of the last gathering is aborted by the
    interpreter, after a good training. The barrier gives that thread the time to let go.
    """
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


class _Parser(OneLineErrors, HfArgumentParser):
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _Parser(cast(Any, DistillArguments), prog="python -m student.train", description=__doc__)
    (args,) = parser.parse_args_into_dataclasses(arguments)
    train(args)
    leave_processes()


if __name__ == "__main__":
    run_command(main)
