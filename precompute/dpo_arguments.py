"""DPOArguments: TRL's DPOConfig as both trainings take it. Needs TRL (the extra `teachers`)."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from trl import DPOConfig

from shards.command import flag
from shards.errors import OptionError, first_line

_NO_PART_OF_THE_WEIGHTS = (
    *("output_dir", "run_name", "project", "report_to", "trackio_", "logging_", "log_", "disable_tqdm", "debug"),
    *("save_", "enable_jit_", "hub_", "push_to_hub", "resume_from_", "restore_callback_", "load_best_", "do_"),
    *("eval_", "per_device_eval_", "prediction_loss_only", "batch_eval_", "metric_for_", "greater_is_", "include_"),
    *("bf16_full_eval", "fp16_full_eval", "label_names", "skip_memory_metrics", "torch_empty_cache_", "use_cpu"),
    *("dataloader_num_", "dataloader_pin_", "dataloader_persistent_", "dataloader_prefetch_", "dataloader_multi"),
    *("ddp_backend", "ddp_timeout", "local_rank", "activation_", "gradient_checkpointing", "precompute_ref_batch_size"),
)
"""Starts of the names of settings under which a training may go on, and that made no other model."""


@dataclass(kw_only=True)
class DPOArguments(DPOConfig):
    """DPOConfig with the build's max_length, and bf16 where the GPU has it.

    Raises OptionError for values that DPOConfig refuses and for settings that cannot mean anything here.
    """

    output_dir: str | None = flag(None, "not given: it follows from --out")
    max_length: int = flag(2048, "tokens of prompt and response; longer responses are cut, prompts never")
    bf16: bool = flag(None, "bf16 autocast; default: where the GPU has it")
    gradient_checkpointing: bool = flag(None, "recompute activations to save memory; default: true")

    def __post_init__(self) -> None:
        self._refuse()
        if self.bf16 is None:
            self.bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported() and not self.fp16
        # transformers renamed it after 5.20, and warns of the old name
        name = "activation_checkpointing" if hasattr(self, "activation_checkpointing") else "gradient_checkpointing"
        if self.gradient_checkpointing is None and getattr(self, name) is None:
            setattr(self, name, True)
        try:
            super().__post_init__()
        except (ValueError, ImportError) as exc:
            raise OptionError(f"DPOConfig: {first_line(exc)}") from exc

    def _refuse(self) -> None:
        refused = {
            "output_dir": (None, "it follows from --out"),
            "resume_from_checkpoint": (None, "a training goes on from its last checkpoint by itself"),
            "save_only_model": (False, "such a checkpoint cannot be gone on from"),
            "model_init_kwargs": (None, "give --dtype or --attn_implementation"),
            "push_to_hub": (False, "two models are made"),
            "eval_strategy": ("no", "there are no data to evaluate on"),
            "load_best_model_at_end": (False, "there are no data to evaluate on"),
            "truncation_mode": ("keep_start", "responses are cut as in the build"),
            "dataset_num_proc": (None, "the data are tokenised as in the build"),
        }
        for name, (neutral, reason) in refused.items():
            if getattr(self, name) != neutral:
                raise OptionError(f"{name}: expected {neutral!r} here ({reason}), got {getattr(self, name)!r}")

    def identity(self) -> dict[str, Any]:
        """The settings that the weights depend on, as JSON values, and the batch that they come to."""
        settings = {
            name: value for name, value in self.to_dict().items() if not name.startswith(_NO_PART_OF_THE_WEIGHTS)
        }
        batch = self.train_batch_size * self.gradient_accumulation_steps * self.world_size
        return {"global_batch_size": batch, **json.loads(json.dumps(settings, default=str))}
