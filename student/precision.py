"""The precision that a student computes in: the default, the opening line, and loss scaling on every device.

Weights that are trained are float32 whatever the precision; autocast rounds copies of them and the activations.
"""

import os
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import DistributedType
from transformers import Trainer, TrainerCallback

from shards.modelfiles.precision import rounding_apart

SHARDING = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
"""Variables of accelerate's launcher: who shards rounds whole layers, where autocast rounds products."""


def choose_autocast(options: Any) -> None:
    """Set fp16 and bf16 where they are not given: fp16 on a GPU, float32 elsewhere.

    fp16, because bf16 turns the gradient several times as much (docs/fidelity.md), at the same speed.
    """
    options.default_precision = options.fp16 is None and options.bf16 is None
    on_gpu = torch.cuda.is_available() and not options.use_cpu
    options.fp16 = bool(on_gpu and options.default_precision if options.fp16 is None else options.fp16)
    options.bf16 = bool(options.bf16)


def precision_text(options: Any) -> str:
    """The precision of a run in one line, and why it is this one."""
    where = "a GPU" if options.device.type == "cuda" else f"a {options.device.type.upper()}"
    default = f" (the default on {where})" if options.default_precision else ""
    if (options.fp16 or options.bf16) and any(map(os.environ.get, SHARDING)):
        half = "fp16" if options.fp16 else "bf16"
        return f"{half}{default} in all layers, as the launcher's sharding rounds; weights in float32"
    if options.fp16:
        return f"fp16 autocast with loss scaling{default}, weights in float32"
    if options.bf16:
        return "bf16 autocast, weights in float32; it turns the gradient several times as much as --fp16 true"
    return f"float32{' with TF32 products' if options.tf32 else ''}{default}"


def keep_float32_sums(plugin: Any) -> None:
    """Let FSDP2 round weights and activations only; accelerate's policy would round the loss, the log and the sums of
    the ranks' gradients too. plugin: accelerate's for FSDP, or None.
    """
    if plugin is not None and plugin.fsdp_version == 2 and plugin.mixed_precision_policy is not None:
        policy = plugin.mixed_precision_policy
        plugin.mixed_precision_policy = replace(policy, reduce_dtype=torch.float32, output_dtype=None)


def rounding_of(options: Any, weights: torch.dtype) -> float:
    """How far rounding takes two hidden states apart at most, by the dtype of the weights or of the products."""
    products = "float16" if options.fp16 else "bfloat16" if options.bf16 else "tf32" if options.tf32 else "float32"
    return max(rounding_apart(weights), rounding_apart(products))


class ScalingTrainer(Trainer):
    """A Trainer whose loss scaling of fp16 works on a CPU too, and is logged.

    accelerate ignores fp16 on a CPU and trains in float32. The log has `loss_scale`, and in `skipped_steps` the steps
    since the previous log whose gradient was not finite at its scale: the scale is halved, the weights and the schedule
    stay, and the loss and metrics of such a step are those of its rows.

    loss_scale   after the last step; None without loss scaling
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.skipped_steps = 0
        self.loss_scale: float | None = None
        self.add_callback(_Skipped(self))

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        accelerator: Any = self.accelerator
        plain = accelerator.distributed_type in (DistributedType.NO, DistributedType.MULTI_CPU)
        if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu" and plain:
            accelerator.native_amp = True
            accelerator.scaler = torch.amp.GradScaler("cpu")
        keep_float32_sums(getattr(accelerator.state, "fsdp_plugin", None))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        scaler: Any = self.accelerator.scaler
        if scaler is not None and "loss" in logs:
            logs |= {"loss_scale": scaler.get_scale(), "skipped_steps": self.skipped_steps}
            self.skipped_steps = 0
        super().log(logs, start_time)


class _Skipped(TrainerCallback):
    """Counts the steps that the scaler skips, and tells the optimizer's wrapper, so that the schedule stays too.

    accelerate sees only whether the optimizer's step was called. A fused one always is, and skips the update itself.
    """

    def __init__(self, trainer: ScalingTrainer) -> None:
        self.trainer = trainer
        self._scale: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._scale = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._scale is None and self.trainer.accelerator.scaler is not None:
            self._scale = self.trainer.accelerator.scaler.get_scale()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._scale is not None:
            before, self._scale = self._scale, self.trainer.accelerator.scaler.get_scale()
            self.trainer.loss_scale = self._scale
            optimizer: Any = self.trainer.optimizer
            optimizer._is_overflow = self._scale < before
            self.trainer.skipped_steps += self._scale < before
