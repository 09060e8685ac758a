"""What a run is: the file that a checkpoint carries, and what a run must be to go on from it."""

from pathlib import Path
from typing import Any

from shards.errors import CacheConflict, OptionError
from shards.manifest import read_json, refuse_difference
from student.data import CachedResponses, GlobalBatchSampler
from student.options import DistillArguments

RUN_FILE = "distill_run.json"
RECIPE = (
    *(
        "learning_rate",
        "warmup_steps",
        "lr_scheduler_kwargs",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "max_grad_norm",
    ),
    *("dtype", "bf16", "use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"),
)
"""What a resumed run must have as it was, besides teacher, loss and order. It may train for more or fewer steps."""


def run_identity(args: DistillArguments, dataset: CachedResponses, sampler: GlobalBatchSampler) -> dict[str, Any]:
    """Caches, teacher, loss, order and recipe, as JSON values."""
    return {
        "caches": [cache.plan.sha256 for cache in dataset.caches],
        "train_on": dataset.train_on,
        "teacher": {name: getattr(args.spec, name) for name in args.spec.__slots__},
        "divergence": args.divergence,
        "jsd_weight": args.jsd_weight,
        "reduction": args.reduction,
        "seed": sampler.seed,
        "global_batch_size": sampler.global_batch_size,
        **{name: getattr(args, name) for name in RECIPE},
        "lr_scheduler_type": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        "optim": str(getattr(args.optim, "value", args.optim)),
    }


def require_same_run(checkpoint: Path, identity: dict[str, Any]) -> None:
    """Raise CacheConflict where a checkpoint is of another run, naming the first field that differs."""
    if not (checkpoint / RUN_FILE).is_file():
        raise CacheConflict(f"{checkpoint}: expected a checkpoint with {RUN_FILE}, found none")
    refuse_difference(read_json(checkpoint / RUN_FILE), identity, f"{checkpoint}: is of another run")


def require_steps_after_warm_up(args: DistillArguments, steps: int) -> None:
    """Raise OptionError for a run that is over before its learning rate has risen."""
    warm_up = args.get_warmup_steps(steps)
    if args.learning_rate > 0 and warm_up >= steps:
        raise OptionError(
            f"warmup_steps: expected fewer than the run's {steps}, got {warm_up}: the student would hardly change; "
            "lower --global_batch_size, train for longer or give --warmup_steps 0"
        )
