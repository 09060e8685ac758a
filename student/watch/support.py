"""Warns when the student's mass leaves the kept tokens. Pure, except for remembering its last warning."""

from dataclasses import dataclass

from shards.teacher.trust import LOW_SUPPORT_MASS

SUPPORT_STEP = 0.05
"""Loss of mass relative to the reference: the first amount causes a warning, the second repeats it. It is twice what
the default build leaves outside on the models of docs/teacher.md, so the cause is the student and not the cache."""


@dataclass(slots=True)
class SupportWatch:
    """Warns when the student leaves the tokens that its targets describe, and again when it gets worse by a step.

    The student starts at or near the reference, so it is compared with the reference's own mass at the same positions:
    only the student's own movement can cause a difference.
    """

    _said_lost: float = 0.0
    _said_low: bool = False

    def message(self, step: int, mass: float, reference_mass: float) -> str | None:
        """The warning for the means of the steps up to `step`; None if there is nothing new to say."""
        lost, low = reference_mass - mass, mass < LOW_SUPPORT_MASS
        left = lost >= self._said_lost + SUPPORT_STEP
        if not left and (self._said_low or not low):
            return None
        self._said_lost = max(lost, self._said_lost)
        self._said_low |= low
        means = (
            f"under {LOW_SUPPORT_MASS:g}, the targets no longer describe what it says"
            if low
            else "it moves to tokens that the targets hold in one bucket"
        )
        remedy = (
            "lower --learning_rate or --gain, train for fewer steps, or build with a larger --top_k"
            if lost >= SUPPORT_STEP
            else "build with a larger --top_k"
        )
        return (
            f"step {step:,}: the student has {mass:.3f} of its mass on the cached tokens, the reference "
            f"{reference_mass:.3f} at the same positions: {means}; {remedy}"
        )
