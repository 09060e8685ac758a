"""Measures a model of the demo: true reward, distance to the reference, agreement with the preferences.

Dimensions: B sequences, T tokens, N response tokens in a row, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from examples.demo.grammar import Dish, true_reward

MAX_NEW_TOKENS = 40
BATCH_SIZE = 128
NUM_SHOWN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    prompt: str
    response: str
    true_reward: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """true_reward    mean over sampled responses to held-out prompts, with its standard error
    kl_nats       sum over a sampled response's tokens of KL(model || reference), full vocabulary; the mean response
    accuracy      share of held-out pairs whose chosen response gained more log-prob over the reference's than the
                  rejected one; for the reference itself: has the higher log-prob
    samples       of some prompts, the first response
    """

    true_reward: float
    standard_error: float
    kl_nats: float
    accuracy: float
    samples: tuple[Sample, ...]


def evaluate(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[tuple[str, Dish]],
    pairs: Sequence[dict[str, str]],
    *,
    responses_per_prompt: int,
    seed: int,
) -> Quality:
    asked = [item for item in prompts for _ in range(responses_per_prompt)]
    prompt_ids = tokenizer([prompt for prompt, _ in asked])["input_ids"]
    torch.manual_seed(seed)
    response_ids = sample(model, tokenizer, prompt_ids)
    responses = tokenizer.batch_decode(response_ids, skip_special_tokens=True)
    rewards = [true_reward(dish, response) for (_, dish), response in zip(asked, responses, strict=True)]
    logprobs = response_logprobs(model, prompt_ids, response_ids)
    reference_logprobs = response_logprobs(reference, prompt_ids, response_ids)
    kls_nats = [
        (p_NV.exp() * (p_NV - q_NV)).sum().item() for p_NV, q_NV in zip(logprobs, reference_logprobs, strict=True)
    ]
    return Quality(
        true_reward=fmean(rewards),
        standard_error=stdev(rewards) / len(rewards) ** 0.5,
        kl_nats=fmean(kls_nats),
        accuracy=preference_accuracy(model, None if model is reference else reference, tokenizer, pairs),
        samples=tuple(
            Sample(prompt=asked[i][0], response=responses[i], true_reward=rewards[i])
            for i in range(0, len(asked), len(asked) // NUM_SHOWN)
        ),
    )


@torch.no_grad()
def sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt_ids: Sequence[list[int]]
) -> list[list[int]]:
    """One response to each prompt at temperature 1, up to and including the end token."""
    batch = tokenizer.pad({"input_ids": list(prompt_ids)}, padding_side="left", return_tensors="pt")
    output_BT = model.generate(
        **batch, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=MAX_NEW_TOKENS
    )
    new_BT = output_BT[:, batch["input_ids"].shape[1] :]
    return [_until_end(ids, tokenizer.eos_token_id) for ids in new_BT.tolist()]


def preference_accuracy(
    model: PreTrainedModel,
    reference: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[dict[str, str]],
) -> float:
    """Share of pairs in which the chosen response has the higher log-prob, minus the reference's if there is one."""
    margins_B = torch.zeros(len(pairs))
    prompt_ids = tokenizer([pair["prompt"] for pair in pairs])["input_ids"]
    for side, sign in (("chosen", 1), ("rejected", -1)):
        texts = [pair[side] + tokenizer.eos_token for pair in pairs]
        response_ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        margins_B += sign * sequence_logprob(model, prompt_ids, response_ids)
        if reference is not None:
            margins_B -= sign * sequence_logprob(reference, prompt_ids, response_ids)
    return (margins_B > 0).double().mean().item()


def sequence_logprob(
    model: PreTrainedModel, prompt_ids: Sequence[list[int]], response_ids: Sequence[list[int]]
) -> torch.Tensor:
    """log p(response | prompt), (B,), nats."""
    logprobs = response_logprobs(model, prompt_ids, response_ids)
    return torch.stack(
        [rows_NV[range(len(ids)), ids].sum() for rows_NV, ids in zip(logprobs, response_ids, strict=True)]
    )


@torch.no_grad()
def response_logprobs(
    model: PreTrainedModel, prompt_ids: Sequence[list[int]], response_ids: Sequence[list[int]]
) -> Iterator[torch.Tensor]:
    """For each row the (N, V) log-probs at its response tokens."""
    for start in range(0, len(prompt_ids), BATCH_SIZE):
        prompts, responses = prompt_ids[start : start + BATCH_SIZE], response_ids[start : start + BATCH_SIZE]
        rows = [torch.tensor(prompt + response) for prompt, response in zip(prompts, responses, strict=True)]
        # causal attention and padding on the right: padding cannot affect a row
        logits_BTV = model(pad_sequence(rows, batch_first=True)).logits.float()
        for logits_TV, prompt, response in zip(logits_BTV, prompts, responses, strict=True):
            yield logits_TV[len(prompt) - 1 : len(prompt) - 1 + len(response)].log_softmax(-1)


def _until_end(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end) + 1] if end in ids else ids
