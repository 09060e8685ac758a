"""Samples responses from a causal language model; each depends on a seed, not on the rest of its batch.

Dimensions: B requests of a batch, T tokens of the longest prompt, V vocabulary, S steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from shards.errors import NonFiniteLogits
from shards.modelfiles.precision import remedy


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One requested sample: prompt number, sample number for this prompt, the prompt's token ids."""

    prompt: int
    sample: int
    token_ids: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to sample. temperature 0 takes the likeliest token; top_k 0 and top_p 1 keep all tokens.

    end_ids: the tokens that end a response. vocabulary_size: V; further rows of the output layer are padding.
    """

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    end_ids: tuple[int, ...]
    vocabulary_size: int


class Engine(Protocol):
    """Gives for each request the token ids of a response, without its end token, and whether it was cut before an end
    token."""

    def sample(self, requests: Sequence[Request]) -> list[tuple[list[int], bool]]: ...


class TransformersEngine:
    """`generate` of a transformers model, with prompts padded on the left."""

    def __init__(self, model: Any, sampling: Sampling, *, pad_token_id: int) -> None:
        self.model, self.sampling, self.pad_token_id = model, sampling, pad_token_id
        # the model's own config can have a top_k or a penalty, which generate would use if ours has none
        model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=list(sampling.end_ids),
            pad_token_id=pad_token_id,
            use_cache=True,
        )

    @torch.no_grad()
    def sample(self, requests: Sequence[Request]) -> list[tuple[list[int], bool]]:
        longest = max(len(request.token_ids) for request in requests)
        input_ids_BT = torch.full((len(requests), longest), self.pad_token_id)
        attention_mask_BT = torch.zeros_like(input_ids_BT)
        for row, request in enumerate(requests):
            input_ids_BT[row, longest - len(request.token_ids) :] = torch.tensor(request.token_ids)
            attention_mask_BT[row, longest - len(request.token_ids) :] = 1
        device = self.model.device
        watch = _FirstOdd(self.sampling.vocabulary_size)
        output = self.model.generate(
            input_ids=input_ids_BT.to(device),
            attention_mask=attention_mask_BT.to(device),
            logits_processor=self._processors(requests, longest, watch),
        )
        found = [until_end(ids, self.sampling.end_ids) for ids in output[:, longest:].tolist()]
        self._require_finite(requests, found, watch.steps())
        return found

    def _require_finite(
        self, requests: Sequence[Request], found: Sequence[tuple[list[int], bool]], first_odd: Sequence[int | None]
    ) -> None:
        """Raise NonFiniteLogits naming the first token that was sampled from logits that are not numbers.

        What `generate` computes for a row after its end does not count.
        """
        for request, (token_ids, cut), step in zip(requests, found, first_odd, strict=True):
            if step is not None and step < len(token_ids) + (not cut):
                raise NonFiniteLogits(
                    f"model: expected finite logits for sample {request.sample} of prompt {request.prompt} at token "
                    f"{len(request.token_ids) + step - 1}, got others{remedy(self.model.dtype)}"
                )

    def _processors(self, requests: Sequence[Request], prompt_length: int, watch: "_FirstOdd") -> LogitsProcessorList:
        """The steps of the sampling: the last one leaves a single token, and generate always takes the likeliest."""
        sampling = self.sampling
        found: list[LogitsProcessor] = [watch, _WithoutPadding(sampling.vocabulary_size)]
        if sampling.temperature > 0:
            found.append(TemperatureLogitsWarper(sampling.temperature))
            found += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k > 0 else []
            found += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
            found.append(InverseCdf(uniforms(requests, sampling), prompt_length))
        return LogitsProcessorList(found)


def uniforms(requests: Sequence[Request], sampling: Sampling) -> np.ndarray:
    """The random numbers of the sampling, (B, S) in [0, 1): for each request a function of seed, prompt and sample."""
    seeds = ([sampling.seed, request.prompt, request.sample] for request in requests)
    return np.stack([np.random.default_rng(seed).random(sampling.max_new_tokens) for seed in seeds])


def until_end(token_ids: Sequence[int], end_ids: Sequence[int]) -> tuple[list[int], bool]:
    """(the tokens before the first end token, whether there is no end token)."""
    end = next((i for i, token_id in enumerate(token_ids) if token_id in end_ids), None)
    return list(token_ids[:end]), end is None


class _FirstOdd(LogitsProcessor):
    """Remembers, for each row, the first step whose logits are not finite; the host does not wait for any of them."""

    def __init__(self, vocabulary_size: int) -> None:
        self._vocabulary_size = vocabulary_size  # rows behind it are padding
        self._finite: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._finite.append(scores[:, : self._vocabulary_size].isfinite().all(-1))
        return scores

    def steps(self) -> list[int | None]:
        """The number of that step, or None, for each row."""
        finite_BS = torch.stack(self._finite, dim=1).cpu().numpy()
        return [None if row_S.all() else int(row_S.argmin()) for row_S in finite_BS]


class _WithoutPadding(LogitsProcessor):
    """Excludes ids that the tokenizer does not have."""

    def __init__(self, vocabulary_size: int) -> None:
        self.vocabulary_size = vocabulary_size

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores_BV = scores.clone()
        scores_BV[:, self.vocabulary_size :] = -torch.inf
        return scores_BV


class InverseCdf(LogitsProcessor):
    """Leaves the one token at which a row's cumulative distribution passes the row's random number of this step."""

    def __init__(self, uniform_BS: np.ndarray, prompt_length: int) -> None:
        self.uniform_BS = torch.from_numpy(uniform_BS)
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        uniform_B = self.uniform_BS[:, input_ids.shape[1] - self.prompt_length].to(scores.device)
        # float64: over a whole vocabulary the error of a float32 running sum exceeds the probability of a rare token
        cdf_BV = scores.double().softmax(-1).cumsum(-1)
        # right of equal values, so that no token of probability 0 is taken
        picked_B1 = torch.searchsorted(cdf_BV, (uniform_B * cdf_BV[:, -1])[:, None], right=True)
        return torch.full_like(scores, -torch.inf).scatter(-1, picked_B1.clamp_(max=scores.shape[-1] - 1), 0.0)
