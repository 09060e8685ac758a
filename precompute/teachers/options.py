"""TeacherOptions: the flags of `python -m precompute.teachers` in addition to those of TRL's DPOConfig."""

from dataclasses import dataclass, field
from typing import Any, Literal

from precompute.tokens.data_options import DataOptions
from shards.cli.command import flag, require_at_least
from shards.cli.device import Dtype
from shards.cli.flags.lora_flags import LoraFlags
from shards.errors import OptionError


@dataclass(kw_only=True)
class TeacherOptions(LoraFlags, DataOptions):
    """Models, data and LoRA of both trainings. Raises OptionError for values out of range."""

    reference: str = field(
        metadata={"help": "folder or hub name of the model that both start from; also DPO's reference model"}
    )
    out: str = field(metadata={"help": "folder that will hold the model folders dpo and reverse"})
    on_overlong: Literal["skip", "error"] = flag("skip", "what to do with prompts of max_length tokens or more")
    on_empty: Literal["skip", "error"] = flag("error", "what to do with empty responses; skip leaves out the pair")

    dtype: Dtype = flag(
        "float32",
        "of the weights; trained weights must be float32, so others only suit the base of adapters; auto: float32, and "
        "on a GPU float16 for the base of adapters",
    )
    attn_implementation: str | None = flag(None, "as in transformers' from_pretrained")
    use_peft: bool = flag(
        False, "train LoRA adapters, merged when the models are saved; use a learning rate of 1e-5 or more"
    )

    def __post_init__(self) -> None:
        DataOptions.__post_init__(self)
        require_at_least(self, 1, ("lora_r", "lora_alpha"))
        if not 0 <= self.lora_dropout < 1:
            raise OptionError(f"lora_dropout: expected a number from 0 and below 1, got {self.lora_dropout}")

    def identity(self) -> dict[str, Any]:
        """The options that the weights depend on; the data have their own hashes."""
        names = ["limit", "on_overlong", "on_empty", "dtype", "attn_implementation", "use_peft"]
        names += ["lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"] if self.use_peft else []
        return {name: getattr(self, name) for name in names}
