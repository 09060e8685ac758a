"""The identity of a run: what its checkpoints record, and what a resumed run must have in common."""

import hashlib
from typing import Any

import torch

from student.data.order import GlobalBatchSampler
from student.data.responses import CachedResponses
from student.loss.forward import base_model
from student.options import DistillArguments

RECIPE = (
    *(
        "learning_rate",
        "warmup_steps",
        "lr_scheduler_kwargs",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "optim_args",
        "max_grad_norm",
    ),
    *("dtype", "bf16", "fp16", "tf32", "use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"),
)
"""Fixed for a resumed run, besides teacher, loss and order. The number of steps may change."""


def run_identity(
    args: DistillArguments, dataset: CachedResponses, sampler: GlobalBatchSampler, model_sha256: str | None
) -> dict[str, Any]:
    """Caches, initial weights of the student, teacher, loss, order and recipe, as JSON values."""
    return {
        "caches": [cache.plan.sha256 for cache in dataset.caches],
        "model": model_sha256,
        "train_on": dataset.train_on,
        "teacher": args.spec.to_json(),
        "divergence": args.divergence,
        "jsd_weight": args.jsd_weight,
        "reduction": args.reduction,
        "seed": sampler.seed,
        "global_batch_size": sampler.global_batch_size,
        **{name: getattr(args, name) for name in RECIPE},
        "lr_scheduler_type": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        "optim": str(getattr(args.optim, "value", args.optim)),
        **({"padding_free": True} if args.padding_free else {}),  # absent in older checkpoints, as the next one
        **({} if args.shuffle_window is None else {"shuffle_window": args.shuffle_window}),
    }


def weights_sha256(model: Any) -> str:
    """sha256, in hex, of the weights that a student starts from: only the frozen ones, if it has adapters.

    Adapters start at random, and the checkpoint has their values. An adapter folder is already merged into its base.
    """
    digest = hashlib.sha256()
    base = base_model(model)
    for name, parameter in base.named_parameters():
        if base is model or not parameter.requires_grad:
            name = name.replace(".base_layer", "")  # peft's name for a layer with an adapter
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
            digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
