"""Watching the student's mass on the kept tokens. Pure but for what was said last."""

from dataclasses import dataclass

from shards.trust import LOW_SUPPORT_MASS

SUPPORT_STEP = 0.05
"""Mass that the student has lost against the reference: so much starts a warning, so much more repeats it. Twice what
the default build leaves outside on the models of docs/teacher.md, so that it is the student and not the cache."""


@dataclass(slots=True)
class SupportWatch:
    """Says when the student leaves the tokens that its targets describe, and again when it is worse by a step.

    The student starts at or near the reference, so it is compared with the reference's own mass at the same positions:
    what is missing beyond that it has moved away itself.
    """

    _said_lost: float = 0.0
    _said_low: bool = False

    def message(self, step: int, mass: float, reference_mass: float) -> str | None:
        """The warning for the means of the steps up to `step`; None where there is nothing new to say."""
        lost, low = reference_mass - mass, mass < LOW_SUPPORT_MASS
        left = lost >= self._said_lost + SUPPORT_STEP
        if not left and (self._said_low or not low):
            return None
        self._said_lost = max(lost, self._said_lost)
        self._said_low |= low
        means = (
            f"under {LOW_SUPPORT_MASS:g}, the targets no longer describe what it says"
            if low
            else "it moves to where the targets are one bucket"
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
