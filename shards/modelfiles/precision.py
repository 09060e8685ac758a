"""Floating-point formats by name: how coarse each is, and what to do where float16 ends. Pure."""

from typing import Any

SPACINGS = {"float32": 2.0**-23, "tf32": 2.0**-10, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Distance of neighbouring numbers, relative to the power of two below them. TF32 is of the factors of a product."""
LARGEST_FLOAT16 = 65504.0
SAME_STATES, SPACINGS_APART = 1e-3, 6.4
"""Largest distance of two hidden states that rounding explains, relative to their length: the first in float32, and so
many spacings of the dtype they are computed in (0.05 in bfloat16)."""


def spacing(dtype: Any) -> float:
    """The spacing of a dtype of torch, or of its name; of float32 for wider ones."""
    return SPACINGS.get(_name(dtype), SPACINGS["float32"])


def rounding_apart(dtype: Any) -> float:
    """Largest distance of two hidden states that rounding in this dtype explains, relative to their length."""
    return max(SAME_STATES, SPACINGS_APART * spacing(dtype))


def remedy(dtype: Any, *, autocast: bool = False) -> str:
    """The end of a message about values that are not finite; empty where another dtype does not have a larger range.

    autocast: whether the dtype is that of a training's autocast, not of weights.
    """
    if _name(dtype) != "float16":
        return ""
    flags = "--bf16 true, or --fp16 false for float32" if autocast else "--dtype bfloat16 or float32"
    return f" in float16, whose range ends at {LARGEST_FLOAT16:,.0f}; give {flags}"


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
