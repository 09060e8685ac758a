"""DPOArguments: TRL's DPOConfig, restricted to what both trainings allow. Needs TRL (the extra `teachers`)."""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

import torch
from trl import DPOConfig

from shards.cli.command import flag, require_at_least
from shards.cli.outside import naming
from shards.errors import OptionError

_NO_PART_OF_THE_WEIGHTS = (
    *("output_dir", "run_name", "project", "report_to", "trackio_", "logging_", "log_", "disable_tqdm", "debug"),
    *("save_", "enable_jit_", "hub_", "push_to_hub", "resume_from_", "restore_callback_", "load_best_", "do_"),
    *("eval_", "per_device_eval_", "prediction_loss_only", "batch_eval_", "metric_for_", "greater_is_", "include_"),
    *("bf16_full_eval", "fp16_full_eval", "label_names", "skip_memory_metrics", "torch_empty_cache_", "use_cpu"),
    *("dataloader_num_", "dataloader_pin_", "dataloader_persistent_", "dataloader_prefetch_", "dataloader_multi"),
    *("ddp_backend", "ddp_timeout", "local_rank", "activation_", "gradient_checkpointing", "precompute_ref_batch_size"),
)
"""First parts of the names of settings that may change when a training continues: they do not affect the model."""

_SMOOTHED = {"aot", "aot_unpaired", "exo_pair", "robust"}
"""Losses that use label_smoothing."""


@dataclass(kw_only=True)
class DPOArguments(DPOConfig):
    """DPOConfig with the build's max_length, and bf16 if the GPU supports it.

    Raises OptionError for values that DPOConfig refuses and for settings that make no sense here.
    """

    output_dir: str | None = flag(None, "do not give it: it follows from --out")
    max_length: int = flag(2048, "most tokens of prompt and response; longer responses are cut, prompts never")
    bf16: bool = flag(None, "bf16 autocast; default: true if the GPU supports it")
    logging_nan_inf_filter: bool = flag(False, "hide a loss that is NaN (off: it is shown)")
    gradient_checkpointing: bool = flag(None, "recompute activations to save memory; default: true")

    def __post_init__(self) -> None:
        self._refuse()
        self._require_ranges()
        if self.bf16 is None:
            self.bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported() and not self.fp16
        # transformers renamed it after 5.20, and warns about the old name
        name = "activation_checkpointing" if hasattr(self, "activation_checkpointing") else "gradient_checkpointing"
        if self.gradient_checkpointing is None and getattr(self, name) is None:
            setattr(self, name, True)
        with naming("DPOConfig"):
            super().__post_init__()

    def _refuse(self) -> None:
        refused = {
            "output_dir": (None, "it follows from --out"),
            "resume_from_checkpoint": (None, "a training continues from its last checkpoint by itself"),
            "save_only_model": (False, "no training can continue from such a checkpoint"),
            "model_init_kwargs": (None, "give --dtype or --attn_implementation"),
            "push_to_hub": (False, "the command makes two models"),
            "eval_strategy": ("no", "there are no data to evaluate on"),
            "load_best_model_at_end": (False, "there are no data to evaluate on"),
            "truncation_mode": ("keep_start", "responses are cut as in the build"),
            "dataset_num_proc": (None, "the data are tokenised as in the build"),
            "eval_on_start": (False, "there are no data to evaluate on"),
            "label_smoothing_factor": (0.0, "DPOTrainer does not read it; some losses have --label_smoothing"),
            "padding_free": (False, "TRL would not apply it"),
        }
        for name, (neutral, reason) in refused.items():
            if getattr(self, name) != neutral:
                raise OptionError(f"{name}: expected {neutral!r} here ({reason}), got {getattr(self, name)!r}")

    def _require_ranges(self) -> None:
        """Refuse settings that TRL and transformers accept, but that train nothing, the opposite, or on NaN."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise OptionError(f"{field.name}: expected a finite number, got {value}")
        counts = ("per_device_train_batch_size", "gradient_accumulation_steps", "ref_model_sync_steps")
        require_at_least(self, 1, counts)
        require_at_least(self, 0, ("weight_decay", "max_grad_norm", "warmup_steps", "seed", "dataloader_num_workers"))
        above_zero = ["beta", "learning_rate", "discopop_tau"] + (["num_train_epochs"] if self.max_steps <= 0 else [])
        for name in above_zero:
            if getattr(self, name) <= 0:
                raise OptionError(f"{name}: expected a number above 0, got {getattr(self, name):g}")
        for name in ("ld_alpha", "ref_model_mixup_alpha"):
            if (value := getattr(self, name)) is not None and not 0 <= value <= 1:
                raise OptionError(f"{name}: expected a number from 0 to 1, got {value:g}")
        if self.activation_offloading and not torch.accelerator.is_available():
            raise OptionError("activation_offloading: expected a GPU, found none")
        if not 0 <= self.label_smoothing < 0.5:
            raise OptionError(f"label_smoothing: expected a number from 0 and below 0.5, got {self.label_smoothing:g}")
        losses = [self.loss_type] if isinstance(self.loss_type, str) else self.loss_type
        if self.label_smoothing and not _SMOOTHED & set(losses):
            raise OptionError(
                f"label_smoothing: expected 0 with loss_type {' '.join(losses)}, which does not read it "
                f"({', '.join(sorted(_SMOOTHED))} do), got {self.label_smoothing:g}"
            )
        if str(multiple := self.pad_to_multiple_of).lstrip("-0") == "" or str(multiple).startswith("-"):
            raise OptionError(f"pad_to_multiple_of: expected 1 or more, got {multiple}")

    def identity(self) -> dict[str, Any]:
        """The settings that the weights depend on, as JSON values, and the resulting batch size."""
        settings = {
            name: value for name, value in self.to_dict().items() if not name.startswith(_NO_PART_OF_THE_WEIGHTS)
        }
        batch = self.train_batch_size * self.gradient_accumulation_steps * self.world_size
        return {"global_batch_size": batch, **json.loads(json.dumps(settings, default=str))}
