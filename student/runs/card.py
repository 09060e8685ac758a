"""Writes the model card of a distilled student."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from shards.format.plan import Plan
from shards.format.writer import write_text
from student.log.curves import CURVES_FILE, curves_svg
from student.log.figures import figure_of
from student.log.lines import ends_text
from student.log.series import Series, history
from student.recipe import change_text
from student.runs.record import write_record

CARD_FILE = "README.md"
CURVES = f"\n![loss, KL and reward over the steps]({CURVES_FILE})\n"
MEASURED = ("loss", "kl_teacher", "expected_reward", "kl_reference", "kl_dpo", "strength", "support_mass")


def write_model_card(trainer: Any, folder: Path) -> None:
    """Write README.md into a folder: the teacher, cache and recipe of the trainer's student; and the same for machines
    (`student.runs.record`)."""
    args = trainer.args
    caches = trainer.train_dataset.caches
    data = ModelCardData(library_name="transformers", tags=["aligndistil", "distillation", "alignment"])
    logged = history(entry for entry in trainer.state.log_history if "loss" in entry)
    measured = "".join(_way(name, logged[name]) for name in MEASURED if name in logged)
    ends = ends_text(len(logged["loss"].steps)).capitalize() if logged else "Nothing is logged"
    curves = curves_svg(logged)
    divergence = f"jsd with weight {args.jsd_weight:g}" if args.divergence == "jsd" else args.divergence
    spec = args.spec
    strength = {
        "adaptive": f"gain {spec.gain:g} x D_t + {spec.min_strength:g}",
        "constant": f"{spec.constant_strength:g}, constant",
        "learned": f"{spec.min_strength:g} + softplus({spec.learned_offset} + {spec.learned_slope} x D_t), "
        "clipped at the last node",
    }[spec.strength]
    weight = f"{spec.kl_coef:g}" if spec.strength == "constant" else "beta / strength"
    weight += "" if spec.max_weight is None else f", no more than {spec.max_weight:g}"
    schedule = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    changed = "".join(f"| changed by hand | {change_text(change)} |\n" for change in trainer.changed)
    lora = f"| LoRA | rank {args.lora_r}, alpha {args.lora_alpha} |\n" if args.use_peft else ""
    text = f"""---
{data.to_yaml()}
---

# {Path(args.output_dir).name}

Distilled token by token from a cached teacher with
[AlignDistil](https://arxiv.org/abs/2503.02832), offline: the teacher was computed once and read from a cache.

## Teacher

| | |
|---|---|
| anchor / negative | {args.spec.anchor} / {args.spec.negative} |
| strength | {strength} |
| beta | {args.spec.beta:g} |
| weight of a token | {weight} |
| divergence, reduction | {divergence}, {args.reduction} |

## Cache

{"".join(_cache_table(cache.plan, len(cache)) for cache in caches)}
## Training

| | |
|---|---|
| started from | {trainer.model_name} |
| responses | {len(trainer.train_dataset):,} ({trainer.train_dataset.train_on}) |
| steps, global batch size | {trainer.state.global_step}, {trainer.run_identity()["global_batch_size"]} |
{lora}| learning rate, schedule | {args.learning_rate:g}, {schedule} |
{changed}
## How the training went

{ends}.

| | begin | end | better |
|---|--:|--:|---|
{measured}{"" if curves is None else CURVES}"""
    if curves is not None:
        write_text(folder, CURVES_FILE, curves)
    write_text(folder, CARD_FILE, str(ModelCard(text)))
    write_record(folder, args, caches, trainer.changed)


def _way(name: str, series: Series) -> str:
    """A row of the table: where a figure began and ended, and which way is good."""
    figure = figure_of(name)
    return f"| {figure.heading} | {figure.text(series.begin)} | {figure.text(series.end)} | {figure.good or ''} |\n"


def _cache_table(plan: Plan, rows: int) -> str:
    lines = [f"| build | `{plan.sha256[:16]}` |", f"| rows, response tokens | {rows:,}, {plan.positions:,} |"]
    lines += [
        f"| {role} weights | `{facts['weights_sha256'][:16]}` |" for role, facts in plan.identity["models"].items()
    ]
    return "| | |\n|---|---|\n" + "\n".join(lines) + "\n\n"
