"""The identity of a run: what its checkpoints record, and what a resumed run must have in common."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from shards.format.plan import json_sha256
from student.data.order import GlobalBatchSampler
from student.data.responses import CachedResponses
from student.loss.forward import base_model
from student.options import DistillArguments
from student.recipe import RECIPE

NOT_THE_STUDENTS = (
    *("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype", "use_cache"),
    *("_attn_implementation", "attn_implementation", "bos_token_id", "eos_token_id", "pad_token_id"),
)
"""What a config says about a file, a library or a generation."""


def run_identity(
    args: DistillArguments, dataset: CachedResponses, sampler: GlobalBatchSampler, student: Mapping[str, str | None]
) -> dict[str, Any]:
    """Caches, student, teacher, loss, order and recipe, as JSON values. student: as `student_identity`, or empty."""
    return {
        "caches": [cache.plan.sha256 for cache in dataset.caches],
        "model": student.get("model"),
        "model_config": student.get("model_config"),
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


def student_identity(model: Any) -> dict[str, str | None]:
    """What a student starts from: its weights, and the settings of its config that differ from their defaults."""
    config = base_model(model).config
    try:
        defaults = type(config)().to_dict()  # a later library may have more of them
    except (TypeError, ValueError):  # a config that has none
        defaults = {}
    own = {name: value for name, value in config.to_dict().items() if name not in NOT_THE_STUDENTS}
    own = {name: str(value) for name, value in own.items() if name not in defaults or defaults[name] != value}
    return {"model": weights_sha256(model), "model_config": json_sha256(own)}


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
