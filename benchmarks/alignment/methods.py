"""What is compared: names, knobs, and the flags that each stands for."""

from dataclasses import dataclass
from typing import Any

BETA = 0.1
"""Of the DPO model and its reverse that all teachers are made of."""
DPO_BETAS = (0.03, 0.1, 0.3, 1.0)
POLICY_GRADIENT_KL_COEFS = (0.05, 0.3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Student:
    """A teacher by name.

    flags        of `python -m student.train`
    knob         the flag that says how far it goes; None: there is none
    values       of the knob, from near to far
    """

    flags: dict[str, Any]
    knob: str | None = None
    values: tuple[float, ...] = (0.0,)

    def flags_at(self, value: float) -> dict[str, Any]:
        return self.flags | ({} if self.knob is None else {self.knob: value})


KL_COEFS = (0.4, 0.1, 0.05)  # strengths of 0.25, 1 and 2
GAINS = (0.5, 2.0, 10.0)
STUDENTS = {
    # a constant strength of 1 from reference to dpo is the DPO model itself
    "distilled dpo": Student(flags={"teacher": "linear", "kl_coef": BETA}),
    "linear": Student(flags={"teacher": "linear"}, knob="kl_coef", values=KL_COEFS),
    "contrastive": Student(flags={"teacher": "contrastive"}, knob="kl_coef", values=KL_COEFS),
    "adaptive": Student(flags={"teacher": "adaptive"}, knob="gain", values=GAINS),
    "aligndistil": Student(flags={"teacher": "aligndistil"}, knob="gain", values=GAINS),
    "learned, dpo/reverse": Student(flags={"teacher": "aligndistil", "strength": "learned"}),
    "learned, reference/reference": Student(flags={"teacher": "adaptive", "strength": "learned"}),
}
ON_ROLLOUTS = ("aligndistil",)
"""Students that are also trained on the reference's own responses."""
IN_ROUNDS = ("aligndistil",)
"""Students that are also trained in rounds, each on responses of the student that the last one left."""
WITH_MILD_TEACHERS = ("linear", "contrastive", "adaptive", "aligndistil")
"""Students that also learn from teachers made of DPO models that were trained at the lowest learning rate."""
MILD = "mild teachers"
TEACHER_KL_COEFS = (0.8, 0.4, 0.2, 0.1, 0.05)
TEACHER_GAINS = (0.25, 0.5, 1.0, 2.0, 5.0)
PLENTY = 8
ITSELF = "the teacher itself"
LEARNING_RATE_OF = {"learned, dpo/reverse": "aligndistil", "learned, reference/reference": "adaptive"}
"""Students that are trained at the learning rate of another."""
