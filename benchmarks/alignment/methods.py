"""The methods to compare: names, knobs, and the flags of each."""

from dataclasses import dataclass
from typing import Any, Literal

from shards import TeacherSpec

DPO_BETAS = (0.1, 0.3, 1.0, 3.0)
PAPER_BETA = 0.1
POLICY_GRADIENT_KL_COEFS = (0.05, 0.3)
Knob = Literal["gain", "strength"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Student:
    """A teacher by name.

    flags        of `python -m student.train`
    knob         how far it goes: `--gain`, or the constant strength beta / kl_coef; None: there is none
    values       of the knob, from near to far
    """

    flags: dict[str, Any]
    knob: Knob | None = None
    values: tuple[float, ...] = (0.0,)

    def flags_at(self, value: float, beta: float) -> dict[str, Any]:
        """beta: of the DPO models that the teacher is made of."""
        knob = {"gain": {"gain": value}, "strength": {"kl_coef": beta / (value or 1.0)}, None: {}}[self.knob]
        return self.flags | {"beta": beta} | knob

    def spec_at(self, value: float, beta: float) -> TeacherSpec:
        flags = self.flags_at(value, beta)
        return TeacherSpec.preset(flags.pop("teacher"), **flags)

    def label(self, name: str, value: float) -> str:
        return name if self.knob is None else f"{name}, {self.knob} {value:g}"


PRESETS = {
    "linear": Student(flags={"teacher": "linear"}, knob="strength", values=(0.5, 1.0, 2.0, 4.0)),
    "contrastive": Student(flags={"teacher": "contrastive"}, knob="strength", values=(0.125, 0.25, 0.5, 1.0)),
    "adaptive": Student(flags={"teacher": "adaptive"}, knob="gain", values=(1.0, 2.0, 5.0, 10.0)),
    "aligndistil": Student(flags={"teacher": "aligndistil"}, knob="gain", values=(0.25, 0.5, 1.0, 2.0)),
}
STUDENTS = {
    # a constant strength of 1 from reference to dpo is the DPO model itself
    "distilled dpo": Student(flags={"teacher": "linear"}, knob="strength", values=(1.0,)),
    **PRESETS,
    "learned, dpo/reverse": Student(flags={"teacher": "aligndistil", "strength": "learned"}),
    "learned, reference/reference": Student(flags={"teacher": "adaptive", "strength": "learned"}),
}
ON_ROLLOUTS = ("aligndistil",)
"""Students that are also trained on the reference's own responses."""
IN_ROUNDS = ("aligndistil",)
"""Students that are also trained in rounds, each on responses of the previous round's student."""
FEW = "few pairs"
PAPER = f"teachers of beta {PAPER_BETA:g}"
ITSELF = "the teacher itself"
LEARNING_RATE_OF = {"learned, dpo/reverse": "aligndistil", "learned, reference/reference": "adaptive"}
"""Students that use the learning rate of another method."""
