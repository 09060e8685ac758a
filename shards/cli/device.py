"""A command's device, dtype, kind of products and kernels. The caller passes torch in: `shards` does not import it."""

import contextlib
import importlib.metadata
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal, cast

from shards.errors import OptionError, first_line

Dtype = Literal["auto", "float32", "float16", "bfloat16"]
"""--dtype; `resolve_dtype` says what auto is."""
TENSOR_CORES_SINCE = (8, 0)
"""Compute capability of the first GPUs with TF32 products."""
Kernels = Literal["torch", "triton"]
"""What computes over the vocabulary: plain torch on any device, or Triton kernels on a GPU."""
AskedKernels = Literal["auto", "torch", "triton"]
OLDEST_TRITON = (3, 4)
"""Older ones do not compile the kernels: they take no tuples of tensors."""


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


def why_refused(torch: ModuleType, work: Callable[[], object]) -> str | None:
    """Why this torch, or its build for a device, cannot do some work, found by trying; None if it can.

    A lack of memory is no answer, and is raised.
    """
    try:
        work()
    except (TypeError, RuntimeError) as exc:  # NotImplementedError is a RuntimeError
        if isinstance(exc, torch.OutOfMemoryError) or "CUBLAS" in str(exc):
            raise
        return first_line(exc)
    return None


def resolve_kernels(asked: AskedKernels, device_type: str) -> Kernels:
    """`auto` is triton on a CUDA device if Triton is installed, else torch. Raises OptionError where triton cannot run.

    Triton runs on a CPU in its interpreter only, which is for tests: with TRITON_INTERPRET=1.
    """
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return choose_kernels(asked, device_type, triton=triton_version(), interpreted=interpreted)


def choose_kernels(asked: AskedKernels, device_type: str, *, triton: str | None, interpreted: bool) -> Kernels:
    """`resolve_kernels` for the given version of Triton. Pure."""
    usable = triton is not None and tuple(map(int, triton.split(".")[:2])) >= OLDEST_TRITON
    if asked == "torch":
        return "torch"
    if asked == "auto":
        return "triton" if device_type == "cuda" and usable and not interpreted else "torch"
    if not usable:
        wanted = ".".join(map(str, OLDEST_TRITON))
        raise OptionError(f"kernels: expected triton {wanted} or later for --kernels triton, found {triton or 'none'}")
    if device_type != ("cpu" if interpreted else "cuda"):
        where = "the processor with TRITON_INTERPRET=1" if interpreted else "a CUDA device"
        raise OptionError(f"kernels: expected {where} for --kernels triton, got a device of type {device_type}")
    return "triton"


def triton_version() -> str | None:
    """The version of the Triton that is installed."""
    for name in ("triton", "pytorch-triton"):  # the second comes with nightly builds of torch
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None
