"""What became of a model: true reward of sampled responses, and their exact KL to the reference.

Dimensions: B responses, P prompt tokens, T prompt and response tokens, R response tokens, V vocabulary.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

MAX_NEW_TOKENS = 40
Reward = Callable[[int, str], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Means over sampled responses. Two samples of one size: what is chosen by one is reported by the other.

    reward, choice_reward   true reward
    kl_nats, choice_kl      sum over a response's tokens of KL(model || reference) over the whole vocabulary
    standard_error          of reward
    tokens                  of a response, its end included
    """

    reward: float
    kl_nats: float
    standard_error: float
    tokens: float
    choice_reward: float
    choice_kl: float


class Judge:
    """Samples responses to the same prompts with the same seed, whatever the model.

    reward: (number of the prompt, response) -> true reward. All prompts have the same number of tokens.
    """

    def __init__(
        self,
        reference: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        prompts: Sequence[str],
        reward: Reward,
        *,
        samples_per_prompt: int,
        seed: int,
    ) -> None:
        self.reference = copy.deepcopy(reference).eval()
        self.tokenizer = tokenizer
        self.reward = reward
        self.seed = seed
        self.num_prompts = len(prompts)
        self.ids_BP = torch.tensor(tokenizer(list(prompts))["input_ids"]).repeat(2 * samples_per_prompt, 1)
        self._copy = copy.deepcopy(self.reference)

    @torch.no_grad()
    def __call__(self, model: PreTrainedModel) -> Quality:
        """Of the model as it is now; neither it nor the random state of its training is touched."""
        self._copy.load_state_dict(model.state_dict())
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            ids_BT, mask_BR = self._sample()
        texts = self.tokenizer.batch_decode(ids_BT[:, self.ids_BP.shape[1] :], skip_special_tokens=True)
        reward_B = torch.tensor([self.reward(i % self.num_prompts, text) for i, text in enumerate(texts)])
        kl_B = self._kl(ids_BT, mask_BR)
        half = len(texts) // 2
        return Quality(
            reward=reward_B[:half].mean().item(),
            kl_nats=kl_B[:half].mean().item(),
            standard_error=reward_B[:half].std().item() / half**0.5,
            tokens=mask_BR[:half].sum(-1).float().mean().item(),
            choice_reward=reward_B[half:].mean().item(),
            choice_kl=kl_B[half:].mean().item(),
        )

    def _sample(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompts with their responses at temperature 1 (B, T), and which response tokens there are (B, R)."""
        ids_BT = self._copy.generate(
            input_ids=self.ids_BP,
            attention_mask=torch.ones_like(self.ids_BP),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=MAX_NEW_TOKENS,
            use_cache=True,
        )
        ends_BR = ids_BT[:, self.ids_BP.shape[1] :] == self.tokenizer.eos_token_id
        return ids_BT, ends_BR.cumsum(-1) - ends_BR.long() == 0

    def _kl(self, ids_BT: torch.Tensor, mask_BR: torch.Tensor) -> torch.Tensor:
        """Sum over each response of the exact KL at its tokens, (B,), nats."""
        first = self.ids_BP.shape[1] - 1
        # causal attention: what stands behind a response's end does not reach it
        p_BRV, q_BRV = (m(ids_BT).logits[:, first:-1].float().log_softmax(-1) for m in (self._copy, self.reference))
        return ((p_BRV.exp() * (p_BRV - q_BRV)).sum(-1) * mask_BR).sum(-1)
