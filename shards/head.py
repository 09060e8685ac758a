"""What a model does to its output layer's product before it is a logit. Both rooms must read a model the same way.

A cached log-prob is log_softmax, in float32, of the first `vocabulary_size` of these logits.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitTransform:
    """logits = soft_cap * tanh(scale * product / soft_cap), or scale * product without a cap."""

    scale: float = 1.0
    soft_cap: float | None = None

    @classmethod
    def of(cls, config: Any) -> "LogitTransform":
        """From a transformers config: logit_scale (Cohere), logits_scaling (Granite), final_logit_softcapping (Gemma).

        A model that does something else is found by comparing with its own logits, and refused.
        """
        text = config.get_text_config()
        scale = (getattr(text, "logit_scale", None) or 1.0) / (getattr(text, "logits_scaling", None) or 1.0)
        return cls(scale=scale, soft_cap=getattr(text, "final_logit_softcapping", None))

    def __call__(self, product: Any, xp: ModuleType) -> Any:
        if self.scale != 1.0:
            product = product * self.scale
        return product if self.soft_cap is None else self.soft_cap * xp.tanh(product / self.soft_cap)


def probe_ids(vocabulary_size: int) -> list[int]:
    """A few token ids, spread over the vocabulary, on which a model's own logits are compared with ours."""
    return [(7 + 131 * i) % vocabulary_size for i in range(8)]
