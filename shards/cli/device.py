"""Finds a command's device, dtype and kind of products. The caller passes torch in: `shards` does not import it."""

from types import ModuleType
from typing import Any, Literal, cast

from shards.errors import OptionError, first_line

Dtype = Literal["auto", "float32", "float16", "bfloat16"]
"""--dtype; `resolve_dtype` says what auto is."""
TENSOR_CORES_SINCE = (8, 0)
"""Compute capability of the first GPUs with TF32 products."""


def resolve_device(torch: ModuleType, name: str, local_rank: int = 0) -> Any:
    """`auto` is this process's GPU where there is one, else the processor. Raises OptionError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local_rank}"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as exc:  # a name that torch does not know, a device that is not here
        raise OptionError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r} ({first_line(exc)})") from exc


def resolve_dtype(name: str, device: Any) -> Dtype:
    """The dtype of bodies that only run: auto is float32 on a CPU and float16 on a GPU, however a folder was saved.

    So all roles have the same one. Not bfloat16: it rounds away most of the difference of two models (docs/teacher.md).
    """
    if name == "auto":
        return "float32" if device.type == "cpu" else "float16"
    return cast(Dtype, name)


def resolve_trained_dtype(name: str, device: Any, *, frozen: bool) -> Dtype:
    """The dtype of a training's weights; auto is float32, or that of `resolve_dtype` if they are frozen (LoRA)."""
    return resolve_dtype(name, device) if frozen or name != "auto" else "float32"


def set_products(torch: ModuleType, *, dtype: str, tf32: bool, device: Any) -> None:
    """Set how a GPU multiplies, for bodies and output layers; on a CPU there is nothing to set.

    tf32: round the factors of float32 products to ten bits. Half-precision products are summed in float32 throughout:
    torch's default lets parts of a sum be float16. Raises OptionError for tf32 where it means nothing.
    """
    if tf32 and (device.type != "cuda" or dtype != "float32"):
        raise OptionError(f"tf32: expected it with --dtype float32 on a GPU, got {dtype} on {device.type}")
    if device.type != "cuda":
        return
    if tf32 and (found := torch.cuda.get_device_capability(device)) < TENSOR_CORES_SINCE:
        raise OptionError(f"tf32: expected a GPU of compute capability 8.0 or more, got {found[0]}.{found[1]}")
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    matmul.allow_fp16_reduced_precision_reduction = False
    matmul.allow_bf16_reduced_precision_reduction = False
    if hasattr(matmul, "fp32_precision"):  # torch 2.9 and later, which warn about the names below
        matmul.fp32_precision = cudnn.conv.fp32_precision = "tf32" if tf32 else "ieee"
    else:
        matmul.allow_tf32 = cudnn.allow_tf32 = tf32
