"""Spikes: tells a value that is far above those of the steps before. Pure, except for remembering them."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

WINDOW, RECENT = 128, 8
"""How many values a new one is compared with; and how many of the newest are left out, to see slower rises."""

FEW, LEAST = 4, 16
"""With fewer than LEAST to compare with, the factor counts twice, because first steps are unlike each other; with fewer
than FEW nothing is a spike."""

ROUNDING = 1e-6
"""The least that values are taken for: the loss of a student that is the teacher is rounding of either sign."""


@dataclass(slots=True)
class Spikes:
    """A value is a spike if it is more than `factor` times the largest value of the window.

    The largest and not a median: a loss that falls by a hundred has healthy steps a hundred times over its median, and
    so have batches of one response. No spike gets into the window, because a run stops at its first one.

    factor   None: nothing is a spike
    """

    factor: float | None
    values: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW + RECENT))

    def remember(self, values: Iterable[float]) -> None:
        self.values.extend(values)

    @property
    def limit(self) -> float | None:
        """What a value must not exceed; None if there is no limit."""
        older = len(self.values) - RECENT
        if self.factor is None or older < FEW:
            return None
        return self.factor ** (1 if older >= LEAST else 2) * max(ROUNDING, *islice(self.values, older))
