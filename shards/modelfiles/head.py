"""How the output layer's product becomes logits (scale, soft cap); the same in precompute and student.

A cached log-prob is log_softmax, in float32, of the first `vocabulary_size` of these logits.
"""

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from shards.errors import ModelError, NonFiniteLogits
from shards.modelfiles.precision import remedy, spacing

SAME = 1e-5
"""Largest difference of two float32 computations of the same logits, relative to the largest logit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitTransform:
    """logits = soft_cap * tanh(scale * product / soft_cap), or scale * product without a cap."""

    scale: float = 1.0
    soft_cap: float | None = None

    @classmethod
    def of(cls, config: Any) -> "LogitTransform":
        """From a transformers config: logit_scale (Cohere), logits_scaling (Granite), final_logit_softcapping (Gemma).

        A model that does anything else is refused later, when its own logits are compared with ours.
        """
        text = config.get_text_config()
        scale = (getattr(text, "logit_scale", None) or 1.0) / (getattr(text, "logits_scaling", None) or 1.0)
        return cls(scale=scale, soft_cap=getattr(text, "final_logit_softcapping", None))

    def __call__(self, product: Any, xp: ModuleType) -> Any:
        if self.scale != 1.0:
            product = product * self.scale
        return product if self.soft_cap is None else self.soft_cap * xp.tanh(product / self.soft_cap)


def body_of(model: Any, who: str) -> Any:
    """The part of a causal language model that gives the last hidden states.

    This is its base_model; if that is the whole model again (Llama 4), its decoder, or the only model inside it.
    Raises ModelError if there is none of these.
    """
    inner = [child for child in model.children() if hasattr(child, "base_model")]
    for part in (model.base_model, model.get_decoder(), *(inner if len(inner) == 1 else ())):
        if part is not model:
            return part
    raise ModelError(f"{who}: expected a model with a body and an output layer, got {type(model).__name__}")


def require_same_logits(
    ours: Any, theirs: Any, *, dtype: Any, who: str, model_class: str, autocast: bool = False
) -> None:
    """Compare the logits that we compute from a model's parts with its own logits; same shape, both in its own dtype.

    They may differ by one spacing of that dtype at the largest logit, and by SAME in float32. Raises NonFiniteLogits,
    or ModelError naming the class of a model that does something to its output layer's product that `LogitTransform`
    does not know.
    """
    largest = float(abs(theirs).max())
    if not math.isfinite(largest):
        raise NonFiniteLogits(
            f"{who}: expected finite logits of {model_class}, got {largest}{remedy(dtype, autocast=autocast)}"
        )
    worst = float(abs(ours - theirs).max())
    if not worst <= max(SAME, spacing(dtype)) * largest + 1e-6:
        raise ModelError(
            f"{who}: expected the logits of {model_class} from its body and output layer, got a difference of "
            f"{worst:.2g}; this model class is not supported"
        )


def require_width(width: int, vocabulary_size: int, who: str) -> None:
    """Raise ModelError if the output layer has fewer rows than the tokenizer has ids; additional rows are padding."""
    if width < vocabulary_size:
        raise ModelError(f"{who}: expected an output layer of {vocabulary_size} rows or more, got {width}")


def require_room(config: Any, longest: int, who: str) -> None:
    """Raise ModelError if the longest row has more tokens than the model has positions."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and longest > positions:
        raise ModelError(
            f"{who}: expected rows of at most {positions} tokens (max_position_embeddings), got one of {longest}; "
            f"build with --max_length {positions}"
        )


def probe_ids(vocabulary_size: int) -> list[int]:
    """A few token ids, spread over the vocabulary, for comparing a model's own logits with ours."""
    return [(7 + 131 * i) % vocabulary_size for i in range(8)]
