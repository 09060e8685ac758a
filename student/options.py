"""DistillArguments: the flags of `python -m student.train`; the teacher's are in `shards.cli.flags.teacher_flags`."""

from dataclasses import dataclass
from typing import Literal

from transformers import TrainingArguments

from shards import Divergence
from shards.cli.command import flag
from shards.cli.device import AskedKernels, Dtype, resolve_trained_dtype
from shards.cli.flags.cache_flags import CacheFlags
from shards.cli.flags.lora_flags import LoraFlags
from shards.cli.flags.quiet_flag import QuietFlag
from shards.cli.flags.teacher_flags import TeacherFlags
from shards.cli.launcher import launched_processes
from shards.cli.outside import naming
from shards.errors import OptionError
from shards.teacher.divergence import DivergenceName
from student.option_rules import refuse_options
from student.precision import choose_autocast

DEFAULT_GLOBAL_BATCH_SIZE = 128

DEFAULT_SPIKE_FACTOR = 10.0
"""Measured over healthy runs: docs/decisions/0025."""


@dataclass(kw_only=True)
class DistillArguments(LoraFlags, TeacherFlags, CacheFlags, QuietFlag, TrainingArguments):
    """TrainingArguments with the released off-policy recipe as defaults, plus teacher, loss and data.

    Raises OptionError for values out of range, for contradictions and for options of TrainingArguments that make no
    sense here.
    """

    shards: list[str] = flag(["shards"], "folders or URLs of caches; several must come from the same models")
    eval_shards: list[str] = flag([], "caches to evaluate on")
    model: str | None = flag(None, "student to start from; default: the reference that the cache was built with")
    train_on: Literal["chosen", "rejected", "both"] = flag("chosen", "which cached responses to train on")

    # the other flags of the teacher are in TeacherFlags; only a training can fit a strength
    strength: Literal["adaptive", "constant", "learned"] | None = flag(  # type: ignore[assignment]
        None, "gain * D_t + min_strength, beta / kl_coef, or min_strength + softplus(offset + slope * D_t)"
    )
    learned_offset: float | None = flag(None, "offset of a learned strength; default: fitted on the cached pairs")
    learned_slope: float | None = flag(None, "slope of a learned strength; default: fitted on the cached pairs")

    divergence: DivergenceName = flag("reverse_kl", "between student and teacher")
    jsd_weight: float = flag(0.5, "the teacher's share in the mixture of the generalised JSD")
    reduction: Literal["sequence", "token"] = flag("sequence", "mean over each sequence first, or over all tokens")
    chunk_positions: int = flag(256, "response positions with logits in memory at a time")
    kernels: AskedKernels = flag(
        "auto", "what computes over the vocabulary; auto: Triton kernels on a CUDA device, else plain torch"
    )
    padding_free: bool = flag(
        False, "run the rows of a micro-batch as one, without padding; pays with flash attention only"
    )
    global_batch_size: int | None = flag(
        None,
        f"sequences per optimizer step, {DEFAULT_GLOBAL_BATCH_SIZE} unless accumulation is given; sets accumulation",
    )
    shuffle_window: int | None = flag(
        None, "shards among which rows are shuffled, and which must be on this machine at a time; default: all"
    )

    resume_despite: list[str] = flag(
        [], "fields of the checkpoint's run that may be others, such as learning_rate; recorded in the student's folder"
    )
    stop_on_spike: bool = flag(True, "stop where the loss or the gradient norm spikes; a NaN always stops the run")
    spike_factor: float = flag(DEFAULT_SPIKE_FACTOR, "how many times the largest value of the steps before is a spike")
    record_samples: bool = flag(False, "write the samples of each step, in order, to samples.jsonl in the folder")

    overwrite_output_dir: bool = flag(False, "write into a folder with a model or checkpoints of another run")
    dtype: Dtype = flag(
        "float32",
        "of the student's weights; float32 unless they are the frozen base of adapters; auto: float32, and on a GPU "
        "float16 for the base of adapters",
    )
    attn_implementation: str | None = flag(None, "as in transformers' from_pretrained")
    trust_remote_code: bool = flag(False, "run code that comes with the model")
    use_peft: bool = flag(
        False,
        "train LoRA adapters, merged when the model is saved; use a learning rate of about 1e-4",
    )

    learning_rate: float = flag(1e-6, "peak learning rate")
    lr_scheduler_type: str = flag("cosine_with_min_lr", "schedule of the learning rate")
    lr_scheduler_kwargs: dict | str | None = flag({"min_lr_rate": 0.1}, "arguments of the schedule")
    warmup_steps: float = flag(0.1, "steps of linear warm-up; below 1: a share of all steps")
    adam_beta2: float = flag(0.95, "beta2 of AdamW")
    num_train_epochs: float = flag(1.0, "passes over the rows")
    gradient_accumulation_steps: int = flag(None, "micro-batches per step; default: from global_batch_size")
    fp16: bool = flag(None, "float16 autocast with loss scaling; default: true on a GPU, unless bf16 is given")
    bf16: bool = flag(None, "bfloat16 autocast; rounds the gradient more than fp16")
    logging_steps: float = flag(1, "steps between log lines")
    logging_nan_inf_filter: bool = flag(False, "hide a loss that is NaN (off: it is shown)")

    def __post_init__(self) -> None:
        if self.lr_scheduler_type != "cosine_with_min_lr" and self.lr_scheduler_kwargs == {"min_lr_rate": 0.1}:
            self.lr_scheduler_kwargs = None  # they belong to the default schedule
        choose_autocast(self)
        refuse_options(self)
        self._set_accumulation()
        _ = self.spec, self.loss_divergence, self.room
        with naming("TrainingArguments"):
            super().__post_init__()
        self.dtype = resolve_trained_dtype(self.dtype, self.device, frozen=self.use_peft)
        if self.world_size != (launched := launched_processes()):
            raise OptionError(f"processes: expected {launched}, as WORLD_SIZE says, got {self.world_size}")

    @property
    def loss_divergence(self) -> Divergence:
        return Divergence(name=self.divergence, jsd_weight=self.jsd_weight)

    def _set_accumulation(self) -> None:
        """global_batch_size = per_device_train_batch_size * gradient_accumulation_steps * world size."""
        at_once = self.per_device_train_batch_size * launched_processes()
        if self.gradient_accumulation_steps is None:
            wanted = DEFAULT_GLOBAL_BATCH_SIZE if self.global_batch_size is None else self.global_batch_size
            if wanted < 1 or wanted % at_once:
                raise OptionError(
                    f"global_batch_size: expected a multiple of {at_once} (per_device_train_batch_size * processes), "
                    f"got {wanted}" + ("; lower --per_device_train_batch_size" if 0 < wanted < at_once else "")
                )
            self.gradient_accumulation_steps = wanted // at_once
        elif self.global_batch_size is not None:
            raise OptionError(
                "global_batch_size and gradient_accumulation_steps: expected one of them, got "
                f"{self.global_batch_size} and {self.gradient_accumulation_steps}"
            )
