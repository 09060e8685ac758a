"""Spikes: tells a value that is far above those of the steps before. Pure, except for remembering them."""

import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

WINDOW = 64
"""How many values are remembered."""

LEAST = 16
"""With fewer, nothing is a spike: the first steps of a run are unlike each other."""


@dataclass(slots=True)
class Spikes:
    """A value is a spike if it is more than `factor` times the median and the largest of the last values.

    The median alone would take a heavy tail for a spike, such as that of batches of one response.

    factor   None: nothing is a spike
    """

    factor: float | None
    values: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def remember(self, values: Iterable[float]) -> None:
        self.values.extend(values)

    @property
    def limit(self) -> float | None:
        """What a value must not exceed; None if there is no limit."""
        if self.factor is None or len(self.values) < LEAST:
            return None
        return self.factor * statistics.median(self.values)
