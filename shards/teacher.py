"""The teacher: which distribution a student is distilled towards, and the arithmetic that composes it.

    teacher_logits_t = l_anchor + w_t * (l_dpo - l_negative)        p*_t = softmax(teacher_logits_t)

Zhang et al. 2025 (arXiv 2503.02832): Theorem 1 is the preset `linear`, section 4 the other three. The functions here
are plain arithmetic: they take numpy arrays and torch tensors alike, so that the build, which needs teachers over the
full vocabulary, and the reader, which composes them from a shard, share one formula.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from shards.errors import OptionError
from shards.schema import ANCHORS, NEGATIVES, Pair, Role

MIN_STRENGTH = 1e-3
"""Added to every adaptive strength, as in the released trainer, so that beta / w_t is finite where D_t = 0."""

Strength = Literal["adaptive", "constant"]
Preset = Literal["aligndistil", "adaptive", "contrastive", "linear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSpec:
    """One teacher out of all those that a cache can give.

    anchor, negative   the roles that the teacher starts from and moves away from
    strength           `adaptive`: w_t = gain * D_t + 1e-3; `constant`: w_t = beta / kl_coef
    beta               reward scale of the DPO models, > 0
    gain               growth of an adaptive strength with D_t, >= 0
    kl_coef            weight of the KL penalty of a constant strength, > 0

    Raises OptionError for values out of range.
    """

    anchor: Role = "dpo"
    negative: Role = "reverse"
    strength: Strength = "adaptive"
    beta: float = 0.1
    gain: float = 10.0
    kl_coef: float = 0.05

    def __post_init__(self) -> None:
        for name, legal in (("anchor", ANCHORS), ("negative", NEGATIVES), ("strength", get_args(Strength))):
            if getattr(self, name) not in legal:
                raise OptionError(f"{name}: expected one of {', '.join(legal)}, got {getattr(self, name)!r}")
        for name, lowest in (("beta", "> 0"), ("gain", ">= 0"), ("kl_coef", "> 0")):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (value == 0 and lowest == "> 0"):
                raise OptionError(f"{name}: expected a finite number {lowest}, got {value}")

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "TeacherSpec":
        """One of the four named teachers, with any field overridden. Raises OptionError for an unknown name."""
        if name not in PRESETS:
            raise OptionError(f"teacher: expected one of {', '.join(PRESETS)}, got {name!r}")
        return replace(PRESETS[name], **overrides)

    @property
    def pair(self) -> Pair:
        return Pair(self.anchor, self.negative)

    @property
    def constant_strength(self) -> float:
        """w of a constant strength: beta / kl_coef."""
        return self.beta / self.kl_coef

    def __str__(self) -> str:
        how = f"gain {self.gain:g}" if self.strength == "adaptive" else f"kl_coef {self.kl_coef:g}"
        return f"anchor {self.anchor}, negative {self.negative}, {self.strength} strength, beta {self.beta:g}, {how}"


PRESETS: dict[str, TeacherSpec] = {
    "aligndistil": TeacherSpec(anchor="dpo", negative="reverse", strength="adaptive"),
    "adaptive": TeacherSpec(anchor="reference", negative="reference", strength="adaptive"),
    "contrastive": TeacherSpec(anchor="dpo", negative="reverse", strength="constant"),
    "linear": TeacherSpec(anchor="reference", negative="reference", strength="constant"),
}


def teacher_logits(anchor: Any, difference: Any, strength: Any) -> Any:
    """l_anchor + w * difference, difference = l_dpo - l_negative; unnormalised, nats. Zhang et al. 2025, Theorem 1.

    The product has the shape of the result. One array is made, not two: over a whole vocabulary that is what counts.
    """
    logits = strength * difference
    logits += anchor
    return logits


def adaptive_strength(l1_distance: Any, gain: Any) -> Any:
    """w_t = gain * D_t + 1e-3, the shape of `l1_distance`."""
    return gain * l1_distance + MIN_STRENGTH


def strength(spec: TeacherSpec, l1_distance: Any) -> Any:
    """w_t of the spec, the shape of `l1_distance` (D_t for the spec's negative)."""
    if spec.strength == "adaptive":
        return adaptive_strength(l1_distance, spec.gain)
    return 0 * l1_distance + spec.constant_strength


def token_weight(spec: TeacherSpec, strength_N: Any) -> Any:
    """lambda_t of the loss: kl_coef for a constant strength, beta / w_t otherwise."""
    if spec.strength == "adaptive":
        return spec.beta / strength_N
    return 0 * strength_N + spec.kl_coef
