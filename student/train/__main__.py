"""python -m student.train: trains a student on a cache, and saves it as a transformers folder."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import HfArgumentParser, set_seed

from shards.cli.command import parse_dataclasses, run_command
from shards.cli.flags.quiet_flag import asked_level
from shards.cli.launcher import leave
from shards.cli.outside import naming_saves
from shards.cli.trust_text import GOOD_TEXT, sampled, trust_lines
from shards.errors import OptionError, first_line
from shards.files import make_folder, matching
from shards.modelfiles.adapter import lora_config
from shards.modelfiles.find import resolve
from shards.progress import commanded
from shards.say import say, speaks, warn
from shards.spread import chunks
from shards.teacher.precision import Precision
from shards.teacher.trust import assess
from student.data.responses import CachedResponses
from student.load import load_model, load_tokenizer
from student.log.files import checkpoints_of
from student.log.lines import changes_text, next_text
from student.loss.forward import base_model
from student.options import DistillArguments
from student.precision import precision_text
from student.runs.checkpoints import checkpoint_to_resume, step_of
from student.runs.learned import require_teacher, take_fit
from student.runs.outside import naming_processes
from student.runs.processes import alone
from student.runs.schedule import steps_texts
from student.train.distance import distance_text, measure
from student.train.ranks import require_same_inputs
from student.train.reference import reference_of
from student.train.saving import save, save_evaluation
from student.trainer import DistillTrainer

SAMPLE_ROWS = 200
"""Responses on which the teacher is measured before the first step: about ten thousand positions, two seconds."""


def train(args: DistillArguments) -> DistillTrainer:
    """Train a student and save it with tokenizer and model card. Raises AlignDistilError."""
    with alone(Path(str(args.output_dir))):
        return _train(args)


def _train(args: DistillArguments) -> DistillTrainer:
    set_seed(args.seed)
    room = args.room
    train_data = CachedResponses(args.shards, train_on=args.train_on, room=room)
    require_teacher(args.spec, train_data)
    eval_data = None
    if args.eval_shards:
        eval_data = CachedResponses(args.eval_shards, train_on=args.train_on, room=room)
    source = resolve(args.model) if args.model else reference_of(train_data.caches[0])
    _require_output(args, source.path)
    checkpoint, left_aside = checkpoint_to_resume(args.resume_from_checkpoint, Path(str(args.output_dir)))
    take_fit(args, checkpoint)
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
    trainer.require_ready(checkpoint)
    if trainer.is_world_process_zero():
        say_plan(_plan(trainer, source.name, _resumed_text(checkpoint, left_aside, trainer.num_steps)))
    start = measure(trainer)
    trainer.train(resume_from_checkpoint=checkpoint)
    if eval_data is not None:
        save_evaluation(trainer, trainer.evaluate())
    went = distance_text(start, measure(trainer))
    save(trainer, tokenizer, source)
    if trainer.is_world_process_zero():
        say(_end_text(trainer, went))
    return trainer


def _end_text(trainer: DistillTrainer, went: str) -> str:
    """Where the student is, what changed, and what to type next. went: as `distance_text`, or empty."""
    args, state = trainer.args, trainer.state
    done = f"{args.output_dir}: done, after {state.global_step:,} steps; {went}".removesuffix("; ")
    parts = [done, changes_text(state.log_history), next_text(str(args.output_dir), args.eval_shards)]
    return "\n".join(filter(None, parts))


def _require_output(args: DistillArguments, source: Path) -> None:
    """Raise OptionError if the output folder is not writable, or has content that this run does not resume from."""
    out = Path(str(args.output_dir))
    if source.resolve() == out.resolve():
        raise OptionError(f"output_dir: expected another folder than the student's own, got {args.output_dir}")
    if (args.eval_strategy != "no" or args.eval_on_start) and not args.eval_shards:
        raise OptionError("eval_shards: expected caches to evaluate on, got none")
    if int(os.environ.get("RANK", "0")) == 0:
        with naming_saves("output_dir"):
            make_folder(out)
            tempfile.TemporaryFile(dir=out).close()
        _require_unused(args, out)


def _require_unused(args: DistillArguments, out: Path) -> None:
    """Raise OptionError if the output folder has a model or checkpoints that this run does not resume from."""
    wanted = str(args.resume_from_checkpoint).lower()
    found = sorted(path.name for pattern in ("config.json", "checkpoint-*") for path in matching(out, pattern))
    if args.overwrite_output_dir or not found or (wanted == "true" and checkpoints_of(out)):
        return
    if wanted in ("none", "false", "true"):
        resume = "" if wanted == "true" else "--resume_from_checkpoint true or "
        raise OptionError(
            f"output_dir: expected a folder without a model, found {found[0]} in {out}; give another one, "
            f"{resume}--overwrite_output_dir true"
        )


def say_plan(lines: Mapping[str, str]) -> None:
    """Show the plan before the work; of a quiet run only what should be looked at."""
    indented = {name: text.replace("\n", "\n" + " " * 12) for name, text in lines.items() if text}
    say("\n".join(f"{name:>10}  {text}" for name, text in indented.items()))
    for name in ("verdict", "few steps", "kept") if not speaks() else ():
        if lines[name] and GOOD_TEXT not in lines[name]:
            warn(f"{name}: {' '.join(lines[name].split())}")


def _plan(trainer: DistillTrainer, source: str, resumes: str) -> dict[str, str]:
    """Student, data, teacher and steps, and warnings: label -> text, which may be empty."""
    args, data = trainer.args, trainer.train_dataset
    fault = trainer.generation_config_fault
    steps, few = steps_texts(args, trainer.num_steps, trainer.sampler.global_batch_size)
    return {
        "student": source,
        "responses": f"{len(data):,} ({args.train_on}) from {', '.join(cache.name for cache in data.caches)}",
        "teacher": str(args.spec),
        "loss": f"{args.divergence}, mean by {args.reduction}; {_loss_path(trainer)}",
        "precision": precision_text(args),
        "padding": "none: the rows of a micro-batch run as one" if args.padding_free else "",
        "steps": steps,
        **_trust_lines(trainer),
        "resumed": resumes,
        "few steps": few,
        "kept": f"generation_config.json as it is, though transformers finds fault with it: {fault}" if fault else "",
    }


def _resumed_text(checkpoint: Path | None, left_aside: str, steps: int) -> str:
    """Where a resumed run continues; empty for a new run."""
    begins = f"after {checkpoint.name}" if checkpoint else "from the first step" if left_aside else ""
    if checkpoint is not None and step_of(checkpoint) >= steps:
        begins += ", which has done all steps: the student is only saved again"
    return f"{begins}; {left_aside}".removesuffix("; ")


def _loss_path(trainer: DistillTrainer) -> str:
    """How the output layer's gradient is computed: if it takes a fourth matrix product, why; and by which kernels."""
    forward = trainer.distill_forward
    reason = forward.why_not_fused
    how = "gradient on the way forward" if reason is None else f"logits computed twice, because {reason}"
    return f"{how}; " + ("plain torch code" if forward.kernels == "torch" else "Triton kernels")


def _trust_lines(trainer: DistillTrainer) -> dict[str, str]:
    """Whether the cache is good for the run's teacher, on some of the training rows."""
    data = trainer.train_dataset
    rows = data.sample(SAMPLE_ROWS)
    parts = map(data.scores, chunks(rows, "measuring the teacher"))
    plan = data.caches[0].plan
    trust = assess(parts, trainer.args.spec, data.nodes, plan.vocabulary_size, Precision.of(plan))
    return trust_lines(trust, sampled(len(rows), len(data), few_shards=data.is_remote))


def _add_lora(model: Any, args: DistillArguments) -> Any:
    if not args.use_peft:
        return model
    try:
        import peft
    except ImportError as exc:
        raise OptionError("use_peft: expected peft to be installed; install aligndistil-offline[peft]") from exc
    try:
        adapted = peft.get_peft_model(model, lora_config(peft, args))
    except ValueError as exc:
        raise OptionError(f"lora_target_modules: {first_line(exc)}") from exc
    if args.gradient_checkpointing:
        base_model(adapted).enable_input_require_grads()
    return adapted


def main(arguments: Sequence[str] | None = None) -> None:
    (args,) = parse_dataclasses(HfArgumentParser, DistillArguments, "student.train", __doc__, arguments)
    with commanded(quiet=args.quiet, level=asked_level(args)), naming_processes():
        train(args)
        leave(dist)


if __name__ == "__main__":
    said = "interrupted; with --resume_from_checkpoint true the same command continues from the last checkpoint"
    run_command(main, interrupted=said)
