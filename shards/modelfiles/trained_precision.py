"""Refuses to train weights that are not float32, in precompute and student."""

from typing import Any

from shards.errors import OptionError


def require_float32(model: Any) -> None:
    """Raise OptionError if a trained weight of a torch model has low precision.

    At the size of a weight, bfloat16 and float16 cannot represent a step of 1e-6: it is rounded away, and the log still
    looks healthy.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype.itemsize < 4:
            raise OptionError(
                f"dtype: expected weights in float32 where they are trained, got {name} in "
                f"{str(parameter.dtype).removeprefix('torch.')}, which rounds small steps away; load them with --dtype "
                "float32 and give --bf16 true or --fp16 true for speed, or train LoRA adapters (--use_peft true), "
                "which are float32 on any base"
            )
