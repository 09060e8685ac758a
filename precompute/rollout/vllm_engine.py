"""Sampling with vLLM, if it is installed."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from precompute.rollout.sampling import Request, Sampling, until_end
from shards.errors import ModelError, OptionError, first_line
from shards.modelfiles.find import ModelFolder


def load_vllm(folder: ModelFolder, sampling: Sampling, *, dtype: str, trust_remote_code: bool) -> "VllmEngine":
    """The engine. Raises OptionError if vLLM is not installed, ModelError for an adapter or what vLLM cannot load."""
    try:
        import vllm
    except ImportError as exc:
        raise OptionError(f"engine: expected vllm to be installed ({first_line(exc)}); pip install vllm") from exc
    if folder.base is not None:
        raise ModelError(f"{folder.name}: expected a full model for the engine vllm, got an adapter; merge it first")
    try:
        model = vllm.LLM(model=str(folder.path), dtype=dtype, trust_remote_code=trust_remote_code, seed=sampling.seed)
    except Exception as exc:  # its errors have no common base class
        raise ModelError(f"{folder.name}: expected a model that vllm loads, got {first_line(exc)}") from exc
    return VllmEngine(vllm=vllm, model=model, sampling=sampling)


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmEngine:
    """vLLM's own sampler, with a seed for each request."""

    vllm: Any
    model: Any
    sampling: Sampling

    def sample(self, requests: Sequence[Request]) -> list[tuple[list[int], bool]]:
        prompts = [{"prompt_token_ids": request.token_ids} for request in requests]
        outputs = self.model.generate(prompts, [self._parameters(request) for request in requests], use_tqdm=False)
        return [until_end(list(output.outputs[0].token_ids), self.sampling.end_ids) for output in outputs]

    def _parameters(self, request: Request) -> Any:
        sampling = self.sampling
        return self.vllm.SamplingParams(
            n=1,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_new_tokens,
            seed=seed_of(sampling.seed, request),
            stop_token_ids=list(sampling.end_ids),
            detokenize=False,
        )


def seed_of(seed: int, request: Request) -> int:
    """A seed of 32 bits for one request, a function of the run's seed, the prompt and the sample."""
    text = f"{seed}/{request.prompt}/{request.sample}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
