"""Writes the model card of a distilled student."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from shards.format.plan import Plan
from student.runs.record import write_record

CARD_FILE = "README.md"


def write_model_card(trainer: Any, folder: Path) -> None:
    """Write README.md into a folder: the teacher, cache and recipe of the trainer's student; and the same for machines
    (`student.runs.record`)."""
    args = trainer.args
    caches = trainer.train_dataset.caches
    data = ModelCardData(library_name="transformers", tags=["aligndistil", "distillation", "alignment"])
    last: dict[str, Any] = next((entry for entry in reversed(trainer.state.log_history) if "loss" in entry), {})
    measured = "".join(
        f"| {name} | {last[name]:.4g} |\n"
        for name in ("loss", "kl_teacher", "kl_reference", "expected_reward", "strength", "support_mass")
        if name in last
    )
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

## At the last logged step

| | |
|---|---|
{measured}"""
    ModelCard(text).save(folder / CARD_FILE)
    write_record(folder, args, caches)


def _cache_table(plan: Plan, rows: int) -> str:
    lines = [f"| build | `{plan.sha256[:16]}` |", f"| rows, response tokens | {rows:,}, {plan.positions:,} |"]
    lines += [
        f"| {role} weights | `{facts['weights_sha256'][:16]}` |" for role, facts in plan.identity["models"].items()
    ]
    return "| | |\n|---|---|\n" + "\n".join(lines) + "\n\n"
