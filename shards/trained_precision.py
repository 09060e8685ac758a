"""Weights that are trained are float32, in both rooms."""

from typing import Any

from shards.errors import OptionError


def require_float32(model: Any) -> None:
    """Raise OptionError where a weight of a torch model that is trained is of low precision.

    A step of 1e-6 is far below what bfloat16 and float16 can tell from nothing at the size of a weight: it is rounded
    away, and the log looks healthy all the same.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype.itemsize < 4:
            raise OptionError(
                f"dtype: expected weights in float32 where they are trained, got {name} in "
                f"{str(parameter.dtype).removeprefix('torch.')}, which rounds small steps away; load them with --dtype "
                "float32 and give --bf16 true or --fp16 true for speed, or train LoRA adapters (--use_peft true), "
                "which are float32 on any base"
            )
