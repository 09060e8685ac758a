"""Judges a model: true reward of sampled responses, and their exact KL to the reference.

Dimensions: B responses, P prompt tokens, T prompt and response tokens, R response tokens, V vocabulary.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from shards import TeacherSpec
from shards.format.schema import Role
from shards.teacher.spec import strength, teacher_logits

MAX_NEW_TOKENS = 40
Reward = Callable[[int, str], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Means over sampled responses. Two samples of the same size: one chooses, the other is reported.

    reward, choice_reward   true reward
    kl_nats, choice_kl      sum over a response's tokens of KL(model || reference) over the whole vocabulary
    standard_error          of reward
    tokens                  of a response, including its end
    """

    reward: float
    kl_nats: float
    standard_error: float
    tokens: float
    choice_reward: float
    choice_kl: float


class Judge:
    """Samples responses to the same prompts with the same seed for every model.

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
        """Quality of the current model; does not change it or the random state of its training."""
        self._copy.load_state_dict(model.state_dict())
        ids_BT, mask_BR = self.sample()
        return self.quality(ids_BT, mask_BR, self._logprobs(self._copy, ids_BT))

    def of_teacher(self, models: Mapping[Role, PreTrainedModel], spec: TeacherSpec) -> Quality:
        """Quality of the teacher itself: its responses are sampled from p*, composed of live models token by token."""
        ids_BT, mask_BR = self.sample_teacher(models, spec)
        logprobs = {role: self._logprobs(model, ids_BT) for role, model in models.items()}
        return self.quality(ids_BT, mask_BR, compose_dense(logprobs, spec))

    def quality(self, ids_BT: torch.Tensor, mask_BR: torch.Tensor, p_BRV: torch.Tensor) -> Quality:
        """Quality from sampled responses, and the log-probs that they were sampled with."""
        texts = self.tokenizer.batch_decode(ids_BT[:, self.ids_BP.shape[1] :], skip_special_tokens=True)
        reward_B = torch.tensor([float(self.reward(i % self.num_prompts, text)) for i, text in enumerate(texts)])
        q_BRV = self._logprobs(self.reference, ids_BT)
        kl_B = ((p_BRV.exp() * (p_BRV - q_BRV)).sum(-1) * mask_BR).sum(-1)
        half = len(texts) // 2
        return Quality(
            reward=reward_B[:half].mean().item(),
            kl_nats=kl_B[:half].mean().item(),
            standard_error=reward_B[:half].std().item() / half**0.5,
            tokens=mask_BR[:half].sum(-1).float().mean().item(),
            choice_reward=reward_B[half:].mean().item(),
            choice_kl=kl_B[half:].mean().item(),
        )

    @torch.no_grad()
    def sample(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompts with responses of the last judged model (B, T), and which response tokens exist (B, R)."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
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
        return ids_BT, self._mask(ids_BT)

    @torch.no_grad()
    def sample_teacher(
        self, models: Mapping[Role, PreTrainedModel], spec: TeacherSpec
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same from a teacher."""
        ids_BT, new_BT, caches = self.ids_BP, self.ids_BP, dict.fromkeys(models)
        generator = torch.Generator().manual_seed(self.seed)
        ended_B1 = torch.zeros(len(ids_BT), 1, dtype=torch.bool)
        for _ in range(MAX_NEW_TOKENS):
            logprobs = {}
            for role, model in models.items():
                output = model(new_BT, past_key_values=caches[role], use_cache=True)
                caches[role] = output.past_key_values
                logprobs[role] = output.logits[:, -1].float().log_softmax(-1)
            new_BT = torch.multinomial(compose_dense(logprobs, spec).exp(), 1, generator=generator)
            new_BT = new_BT.masked_fill(ended_B1, self.tokenizer.pad_token_id)
            ended_B1 |= new_BT == self.tokenizer.eos_token_id
            ids_BT = torch.cat([ids_BT, new_BT], dim=1)
            if ended_B1.all():
                break
        return ids_BT, self._mask(ids_BT)

    def _mask(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Response tokens up to and including the first end, (B, R) bool."""
        ends_BR = ids_BT[:, self.ids_BP.shape[1] :] == self.tokenizer.eos_token_id
        return ends_BR.cumsum(-1) - ends_BR.long() == 0

    @torch.no_grad()
    def _logprobs(self, model: PreTrainedModel, ids_BT: torch.Tensor) -> torch.Tensor:
        """Log-probs at the response tokens, (B, R, V)."""
        # causal attention: tokens after a response's end do not affect it
        return model(ids_BT).logits[:, self.ids_BP.shape[1] - 1 : -1].float().log_softmax(-1)


def compose_dense(logprobs: Mapping[Role, torch.Tensor], spec: TeacherSpec) -> torch.Tensor:
    """log p* over the whole vocabulary, the shape of each model's log-probs."""
    distance = (logprobs["dpo"].exp() - logprobs[spec.negative].exp()).abs().sum(-1)
    moved = logprobs["dpo"] - logprobs[spec.negative]
    return teacher_logits(logprobs[spec.anchor], moved, strength(spec, distance)[..., None]).log_softmax(-1)
