"""Legal values of the options of a training: ranges, and flags that make no sense here."""

import math
from typing import Any

from shards import strict_json
from shards.cli.command import require_at_least, require_choices
from shards.errors import OptionError
from student.log.figures import figure_of
from student.loss.sparse import METRICS
from student.metrics import PER_SEQUENCE
from student.recipe import require_free

HIGHEST_SEED = 2**32 - 1

REFUSED = {
    "label_smoothing_factor": (0.0, "targets are whole distributions"),
    "use_liger_kernel": (False, "the loss is fused with the output layer already"),
    "train_sampling_strategy": ("random", "the order is the cache's own, a function of seed and epoch"),
    "auto_find_batch_size": (False, "the batch size is part of the order"),
    "dataloader_drop_last": (False, "the last batch is filled up with rows of weight zero"),
    "neftune_noise_alpha": (None, "the teacher was computed without noise"),
    "parallelism_config": (None, "ranks share the rows; tensor and sequence parallelism are not supported"),
    "bf16_full_eval": (False, "it would round the student's weights before they are saved"),
    "fp16_full_eval": (False, "it would round the student's weights before they are saved"),
    "ignore_data_skip": (False, "a resumed run would read rows twice and others never"),
}
"""Flags of TrainingArguments that must keep their defaults, and why."""

RANGES: dict[str, tuple[float, float]] = {
    "learning_rate": (0, math.inf),
    "warmup_steps": (0, math.inf),
    "weight_decay": (0, math.inf),
    "adam_beta1": (0, 1),
    "adam_beta2": (0, 1),
    "adam_epsilon": (0, math.inf),
    "max_grad_norm": (0, math.inf),
    "lora_dropout": (0, 1),
    "eval_delay": (0, math.inf),
    "dataloader_num_workers": (0, math.inf),
    "seed": (0, HIGHEST_SEED),
    "data_seed": (0, HIGHEST_SEED),
    "ddp_timeout": (1, math.inf),
    "spike_factor": (1, math.inf),
}
"""Lowest and highest value, both legal if finite. A value of None is left to transformers."""

AT_LEAST_ONE = (
    *("chunk_positions", "lora_r", "lora_alpha", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *("gradient_accumulation_steps", "save_total_limit", "dataloader_prefetch_factor", "shuffle_window"),
)
KEYWORDS = ("lr_scheduler_kwargs", "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")
INTERVALS = ("logging_steps", "save_steps", "eval_steps")
WEAK_SHARES = ("low_strength_loss_share", "low_strength_gradient_share")
EVAL_METRICS = ("loss", *METRICS, *(f"{name}_per_sequence" for name in PER_SEQUENCE), *WEAK_SHARES)
"""The metrics of an evaluation, without their prefix `eval_`."""


def refuse_options(options: Any) -> None:
    """Raise OptionError for a value out of range, and for a flag that makes no sense here."""
    require_choices(options)
    if not options.output_dir:
        raise OptionError("output_dir: expected a folder for the student, got none; give --output_dir DIR")
    if not options.shards:
        raise OptionError("shards: expected one or more folders, got none")
    for name, (neutral, reason) in REFUSED.items():
        if getattr(options, name) != neutral:
            raise OptionError(f"{name}: expected {neutral!r} here ({reason}), got {getattr(options, name)!r}")
    require_at_least(options, 1, [name for name in AT_LEAST_ONE if getattr(options, name) is not None])
    if options.dataloader_persistent_workers and not options.dataloader_num_workers:
        raise OptionError("dataloader_persistent_workers: expected dataloader_num_workers of 1 or more, got 0")
    for name, (least, highest) in RANGES.items():
        _require_between(options, name, least, highest)
    _refuse_json(options)
    for name in INTERVALS:
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf and not (name == "eval_steps" and value == 0):
            raise OptionError(f"{name}: expected more than 0, got {value}")
    if options.max_steps != -1 and options.max_steps < 1:
        raise OptionError(f"max_steps: expected 1 or more, or -1 for whole epochs, got {options.max_steps}")
    if options.max_steps == -1 and not 0 < options.num_train_epochs < math.inf:
        raise OptionError(f"num_train_epochs: expected more than 0, got {options.num_train_epochs}")
    _refuse_metric(options)
    require_free(options.resume_despite)


def _require_between(options: Any, name: str, least: float, highest: float) -> None:
    value = getattr(options, name)
    if value is None or (least <= value <= highest and value != math.inf):
        return
    expected = f"{least} or more" if highest == math.inf else f"a number from {least} to {highest}"
    raise OptionError(f"{name}: expected {expected}, got {value}")


def _refuse_json(options: Any) -> None:
    """A value in braces must be JSON, and keyword arguments must be in braces: files are not supported."""
    for name in (*options._VALID_DICT_FIELDS, *KEYWORDS):
        value = getattr(options, name)
        if not isinstance(value, str) or not (value.startswith("{") or name in KEYWORDS):
            continue
        try:
            found = strict_json.loads(value)
        except ValueError as exc:
            raise OptionError(f"{name}: expected a JSON object, got {value!r} ({exc})") from exc
        if not isinstance(found, dict):
            raise OptionError(f"{name}: expected a JSON object, got {value!r}")


def _refuse_metric(options: Any) -> None:
    """The metric of the best model must be one of an evaluation, and it must be clear whether high or low is best."""
    if options.eval_strategy == "no" and (options.load_best_model_at_end or options.save_strategy == "best"):
        raise OptionError("eval_strategy: expected steps or epoch, by which the best model is found, got 'no'")
    if options.metric_for_best_model is None:
        return
    name = options.metric_for_best_model.removeprefix("eval_")
    if name not in EVAL_METRICS:
        raise OptionError(
            f"metric_for_best_model: expected one of {', '.join(EVAL_METRICS)}, got {options.metric_for_best_model!r}"
        )
    if options.greater_is_better is None:
        good = figure_of(name).good
        if good is None:
            raise OptionError(f"greater_is_better: expected true or false for the metric {name}, got none")
        options.greater_is_better = good == "higher"
