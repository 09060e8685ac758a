"""TeacherSpec: which teacher a student learns from, and the formulas that compose it.

    teacher_logits_t = l_anchor + w_t * (l_dpo - l_negative)        p*_t = softmax(teacher_logits_t)

Zhang et al. 2025 (arXiv 2503.02832): Theorem 1 is the preset `linear`, section 4 the other three. The functions are
plain arithmetic that takes numpy arrays and torch tensors, so that one formula serves the build, which needs teachers
over the full vocabulary, and the reader, which composes them from a shard. (Only readers have a learned strength; it
takes numpy arrays.)
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from shards.errors import OptionError
from shards.format.nodes import MIN_STRENGTH, adaptive_strength
from shards.format.schema import ANCHORS, NEGATIVES, Pair, Role

LOWEST_MIN_STRENGTH = 1e-6
"""D_t of equal models in float32 is as large, from rounding alone; beta / w_t must stay far from float32's largest."""

Strength = Literal["adaptive", "constant", "learned"]
Preset = Literal["aligndistil", "adaptive", "contrastive", "linear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSpec:
    """One of the teachers that a cache can give.

    anchor, negative   the roles that the teacher starts from and moves away from
    strength           `adaptive`: w_t = gain * D_t + min_strength; `constant`: w_t = beta / kl_coef; `learned`: see
                       `learned_strength`
    beta               reward scale of the DPO models, > 0
    gain               growth of an adaptive strength with D_t, >= 0
    kl_coef            weight of the KL penalty of a constant strength, > 0
    min_strength       the strength at D_t = 0 of an adaptive one, and the lower bound of a learned one;
                       >= LOWEST_MIN_STRENGTH
    max_weight         lambda_t is never larger, > 0; None: no cap
    learned_offset, learned_slope   a and b of a learned strength (`shards.preferences` fits them); None before the fit,
                       and for every other strength

    Raises OptionError for values out of range.
    """

    anchor: Role = "dpo"
    negative: Role = "reverse"
    strength: Strength = "adaptive"
    beta: float = 0.1
    gain: float = 10.0
    kl_coef: float = 0.05
    min_strength: float = MIN_STRENGTH
    max_weight: float | None = None
    learned_offset: float | None = None
    learned_slope: float | None = None

    def __post_init__(self) -> None:
        for name, legal in (("anchor", ANCHORS), ("negative", NEGATIVES), ("strength", get_args(Strength))):
            if getattr(self, name) not in legal:
                raise OptionError(f"{name}: expected one of {', '.join(legal)}, got {getattr(self, name)!r}")
        for name, lowest in (("beta", "> 0"), ("gain", ">= 0"), ("kl_coef", "> 0")):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (value == 0 and lowest == "> 0"):
                raise OptionError(f"{name}: expected a finite number {lowest}, got {value}")
        if not LOWEST_MIN_STRENGTH <= self.min_strength < math.inf:
            expected = f"a finite number of {LOWEST_MIN_STRENGTH:g} or more, since lambda_t is beta / w_t"
            raise OptionError(f"min_strength: expected {expected}, got {self.min_strength}")
        if self.max_weight is not None and not 0 < self.max_weight < math.inf:
            raise OptionError(f"max_weight: expected a finite number > 0, got {self.max_weight}")
        self._check_learned()

    def _check_learned(self) -> None:
        given = (self.learned_offset, self.learned_slope)
        if given == (None, None):
            return
        if self.strength != "learned":
            raise OptionError(
                f"learned_offset and learned_slope: expected with the strength learned only, got {self.strength}"
            )
        for name, value in zip(("learned_offset", "learned_slope"), given, strict=True):
            if value is None or not math.isfinite(value):
                raise OptionError(f"{name}: expected a finite number beside the other, got {value}")

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

    @property
    def needs_fit(self) -> bool:
        """Whether the strength is learned and its two numbers are not known yet."""
        return self.strength == "learned" and self.learned_offset is None

    def __str__(self) -> str:
        how = {
            "adaptive": f"gain {self.gain:g}",
            "constant": f"kl_coef {self.kl_coef:g}",
            "learned": "not fitted" if self.needs_fit else f"offset {self.learned_offset}, slope {self.learned_slope}",
        }[self.strength]
        text = f"anchor {self.anchor}, negative {self.negative}, {self.strength} strength, beta {self.beta:g}, {how}"
        return text + "".join(f", {name} {getattr(self, name):g}" for name in self._changed)

    @property
    def _changed(self) -> list[str]:
        """Those of the LATER fields that are not at their defaults."""
        return [name for name, default in LATER.items() if getattr(self, name) != default]

    def to_json(self) -> dict[str, Any]:
        """The fields, for a record. LATER fields are left out at their defaults: an older record says the same."""
        return {name: value for name, value in asdict(self).items() if name not in LATER or name in self._changed}


LATER: dict[str, float | None] = {"min_strength": MIN_STRENGTH, "max_weight": None}
"""Fields that records of earlier versions do not have, and the values that these runs had."""


DEFAULT_PRESET: Preset = "aligndistil"
PRESETS: dict[str, TeacherSpec] = {
    "aligndistil": TeacherSpec(anchor="dpo", negative="reverse", strength="adaptive"),
    "adaptive": TeacherSpec(anchor="reference", negative="reference", strength="adaptive"),
    "contrastive": TeacherSpec(anchor="dpo", negative="reverse", strength="constant"),
    "linear": TeacherSpec(anchor="reference", negative="reference", strength="constant"),
}


def teacher_logits(anchor: Any, difference: Any, strength: Any) -> Any:
    """l_anchor + w * difference, difference = l_dpo - l_negative; unnormalised, nats. Zhang et al. 2025, Theorem 1.

    The product must have the shape of the result: then only one array is allocated, which matters over a vocabulary.
    """
    logits = strength * difference
    logits += anchor
    return logits


def contrastive_reward(dpo: Any, negative: Any, beta: float) -> Any:
    """beta (l_dpo - l_negative) of a token, from its log-probs in nats: what a preference says of it. Section 4."""
    return beta * (dpo - negative)


def learned_strength(
    l1_distance: np.ndarray, offset: float, slope: float, highest: np.ndarray, min_strength: float = MIN_STRENGTH
) -> np.ndarray:
    """w_t = min_strength + softplus(offset + slope * D_t), clipped at the position's last node, `highest`. Numpy only.

    softplus(x) = log(1 + exp(x)) > 0, so the lower end of the nodes' range, 0, is never reached.
    """
    return np.minimum(min_strength + np.logaddexp(0.0, offset + slope * l1_distance), highest)


def strength(spec: TeacherSpec, l1_distance: Any, *, highest: Any = None) -> Any:
    """w_t of the spec, the shape of `l1_distance` (D_t for the spec's negative).

    highest: the last node of each position, the same shape; needed only to clip a learned strength. Other strengths
    beyond the nodes are refused, not clipped (`served.lacks`).
    """
    if spec.strength == "adaptive":
        return adaptive_strength(l1_distance, spec.gain, spec.min_strength)
    if spec.strength == "constant":
        return 0 * l1_distance + spec.constant_strength
    assert spec.learned_offset is not None and spec.learned_slope is not None, "`served.lacks` refuses one without"
    assert highest is not None, "a learned strength ends at the last node"
    return learned_strength(l1_distance, spec.learned_offset, spec.learned_slope, highest, spec.min_strength)


def token_weight(spec: TeacherSpec, strength_N: Any) -> Any:
    """lambda_t of the loss: kl_coef for a constant strength, else beta / w_t; no more than max_weight."""
    weight_N = 0 * strength_N + spec.kl_coef if spec.strength == "constant" else spec.beta / strength_N
    return weight_N if spec.max_weight is None else weight_N.clip(max=spec.max_weight)
