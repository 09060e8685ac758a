"""The fields of a run's identity: which a resumed run must have in common with its checkpoint, and which may change."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from shards.errors import OptionError
from shards.teacher.spec import TeacherSpec

RECIPE = (
    *("learning_rate", "warmup_steps", "lr_scheduler_kwargs", "weight_decay", "adam_beta1", "adam_beta2"),
    *("adam_epsilon", "optim_args", "optim_target_modules", "max_grad_norm"),
    *("dtype", "bf16", "fp16", "tf32", "use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"),
)
"""Options that are recorded as they are. The number of steps may change, and what only changes the order of sums."""

BESIDE = (
    *("caches", "model", "model_config", "train_on", "divergence", "jsd_weight", "reduction", "seed"),
    *("global_batch_size", "lr_scheduler_type", "optim", "padding_free", "shuffle_window"),
)
"""The other fields, but for those of the teacher."""

LATER = ("model_config", "optim_target_modules")
"""Fields that checkpoints of earlier versions do not have. Of these nothing is known, so nothing is compared."""

FITTED = (
    *("use_peft", "lora_r", "lora_alpha", "lora_target_modules"),
    *("optim", "optim_args", "optim_target_modules"),
)
"""Fields that the weights or the optimizer's state of a checkpoint are made for: no run goes on with others."""

OF_GROUPS = {
    **{"learning_rate": "initial_lr", "weight_decay": "weight_decay", "adam_epsilon": "eps"},
    **{"adam_beta1": "betas", "adam_beta2": "betas"},
}
"""Fields that an optimizer keeps in its groups, which a checkpoint brings back -> their name there."""

CHANGED = "changed"
"""In the files of a run: what was not the same all the time, a list of field, until_step, before and after."""

LONGEST = 40
"""Characters of a value in a line, such as a hash."""

FREE = (
    *sorted({*BESIDE, *RECIPE} - {*FITTED}),
    *(f"teacher.{field.name}" for field in fields(TeacherSpec)),
)
"""What --resume_despite takes."""


def require_free(despite: Sequence[str]) -> None:
    """Raise OptionError for a name that --resume_despite does not take."""
    for name in despite:
        if name in FITTED:
            raise OptionError(
                f"resume_despite: {name}: expected as in the checkpoint, whose weights or optimizer state are made for "
                "it; give the checkpoint to --model to begin a new run with another"
            )
        if name not in FREE:
            raise OptionError(f"resume_despite: expected of {', '.join(FREE)}, got {name!r}")


def is_free(name: str, despite: Iterable[str]) -> bool:
    """Whether a field, or one inside it, may differ from the checkpoint's."""
    return any(name == free or name.startswith((f"{free}.", f"{free}[")) for free in despite)


def change_text(change: Mapping[str, Any]) -> str:
    """A change in a few words."""
    before, after = (_text(change.get(name)) for name in ("before", "after"))
    return f"{change.get('field')} {before} until step {change.get('until_step')}, then {after}"


def _text(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
