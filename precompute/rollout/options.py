"""RolloutOptions: every flag of `python -m precompute.rollout`."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from precompute.tokens.data_options import DataOptions
from shards.cli.command import flag
from shards.cli.device import Dtype
from shards.cli.space import require_here
from shards.errors import OptionError


@dataclass(kw_only=True)
class RolloutOptions(DataOptions):
    """Flags of the sampling. Raises OptionError for values out of range and for contradictions."""

    model: str = field(metadata={"help": "the model to sample from: a folder (an adapter's too) or a hub name"})
    out: str = field(metadata={"help": "a .jsonl file to write: prompt, completion and an id"})
    num_samples_per_prompt: int = flag(1, "responses to each prompt")
    max_new_tokens: int = flag(256, "most tokens of a response, including its end token; longer ones are cut")
    temperature: float = flag(1.0, "temperature of the sampling; 0 takes the likeliest token")
    top_p: float = flag(1.0, "sample from the likeliest tokens with this total probability; 1: from all")
    top_k: int = flag(0, "sample from this many of the likeliest tokens; 0: from all")
    seed: int = flag(0, "each sample is a function of seed, prompt number and sample number")
    batch_size: int = flag(16, "responses sampled at a time; a kill loses at most one batch of work")
    on_overlong: Literal["skip", "error"] = flag("skip", "what to do with prompts that leave the model no room")

    engine: Literal["transformers", "vllm"] = flag("transformers", "what does the sampling; vllm must be installed")
    dtype: Dtype = flag("auto", "of the model; auto: float32 on a CPU, float16 on a GPU")
    tf32: bool = flag(False, "with --dtype float32 on a GPU: round the factors of products to TF32's ten bits")
    device: str = flag("auto", "device of the model: auto, cpu, cuda, cuda:1, ...; vllm chooses by itself")
    attn_implementation: str | None = flag(None, "as in transformers' from_pretrained")
    trust_remote_code: bool = flag(False, "run code that comes with a model")

    def __post_init__(self) -> None:
        DataOptions.__post_init__(self)
        lowest = {"num_samples_per_prompt": 1, "max_new_tokens": 1, "batch_size": 1, "top_k": 0, "seed": 0}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise OptionError(f"{name}: expected {least} or more, got {getattr(self, name)}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise OptionError(f"temperature: expected a finite number >= 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise OptionError(f"top_p: expected a number over 0 and up to 1, got {self.top_p}")
        if self.temperature == 0 and self.num_samples_per_prompt > 1:
            count = self.num_samples_per_prompt
            raise OptionError(f"num_samples_per_prompt: expected 1 at temperature 0, where all are alike, got {count}")
        if self.tf32 and self.engine == "vllm":
            raise OptionError(
                "tf32: expected it with the engine transformers only, got vllm, which sets its own products"
            )
        require_here(self.out)
        if Path(self.out).suffix != ".jsonl":
            raise OptionError(f"out: expected a file name that ends in .jsonl, got {self.out}")

    def identity(self) -> dict[str, Any]:
        """The options that the samples depend on; batch_size affects rounding, and a run resumes at a batch."""
        names = ("num_samples_per_prompt", "max_new_tokens", "temperature", "top_p", "top_k", "seed", "batch_size")
        return {name: getattr(self, name) for name in (*names, "on_overlong", "engine")}
