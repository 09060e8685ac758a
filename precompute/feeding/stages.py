"""Where the time of scoring goes, by stage. Measured without making the host wait for the device.

On a CUDA device the stages of its work are timed with events that are read after the device has passed them. On a CPU,
and on other devices, which copy results to the host inside of a stage, they are timed with the host's clock.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, Protocol

import torch

Stage = Literal["bodies", "vocabulary"]
Wait = Literal["input", "results", "writers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds. bodies + vocabulary + idle = wall.

    bodies       forward passes
    vocabulary   output layers, the passes over the vocabulary, and the choice of tokens
    idle         the device had none of these to do; gaps between the kernels of one forward pass are not seen
    input, results, writers    the host waited for packed input, for the device, for a writer to have room
    writing      encoding, compressing, hashing, writing and reading back, added up over the writers' threads
    """

    wall: float = 0.0
    bodies: float = 0.0
    vocabulary: float = 0.0
    idle: float = 0.0
    input: float = 0.0
    results: float = 0.0
    writers: float = 0.0
    writing: float = 0.0

    def __add__(self, other: "Times") -> "Times":
        """The times of two processes, added up."""
        return Times(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Times)})


class Marks(Protocol):
    """Moments in the work of a device."""

    def mark(self) -> Any:
        """The moment when the device has done all that it was given so far."""

    def passed(self, mark: Any) -> bool:
        """Whether that moment has come."""

    def seconds(self, start: Any, stop: Any) -> float:
        """From one moment to a later one; waits for the later one."""


class HostMarks:
    """For a device that works while the host waits."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.mark = clock

    def passed(self, mark: float) -> bool:
        return True

    def seconds(self, start: float, stop: float) -> float:
        return stop - start


class CudaMarks:
    """For a CUDA device: events on its current stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def passed(self, mark: torch.cuda.Event) -> bool:
        return mark.query()

    def seconds(self, start: torch.cuda.Event, stop: torch.cuda.Event) -> float:
        stop.synchronize()
        return start.elapsed_time(stop) / 1000


def marks_for(device: torch.device) -> Marks:
    return CudaMarks(device) if device.type == "cuda" else HostMarks()


class _Work(NamedTuple):
    stage: Stage
    start: Any
    stop: Any


class Stages:
    """Measures the Times between `begin` and `end`. One thread gives the device its work."""

    def __init__(self, marks: Marks | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._marks = HostMarks(clock) if marks is None else marks
        self._clock = clock
        self.begin()

    def begin(self) -> None:
        self._seconds = dict.fromkeys((f.name for f in fields(Times)), 0.0)
        self._open: deque[_Work] = deque()  # work whose end the device may not have reached
        self._last = self._marks.mark()

    def end(self) -> Times:
        """Waits for the device."""
        last = self._marks.mark()
        while self._open:
            self._close()
        self._seconds["idle"] += self._marks.seconds(self._last, last)
        self._seconds["wall"] = sum(self._seconds[name] for name in ("bodies", "vocabulary", "idle"))
        return Times(**self._seconds)

    @contextlib.contextmanager
    def work(self, stage: Stage) -> Iterator[None]:
        """The device gets work of this stage."""
        start = self._marks.mark()
        try:
            yield
        finally:
            self._open.append(_Work(stage, start, self._marks.mark()))
            while self._open and self._marks.passed(self._open[0].stop):
                self._close()

    @contextlib.contextmanager
    def waiting(self, wait: Wait) -> Iterator[None]:
        """The host waits."""
        start = self._clock()
        try:
            yield
        finally:
            self._seconds[wait] += self._clock() - start

    def wrote(self, seconds: float) -> None:
        """A writer's thread has worked this long."""
        self._seconds["writing"] += seconds

    def _close(self) -> None:
        """Add the oldest work to its stage, and the gap before it to the idle time."""
        stage, start, stop = self._open.popleft()
        self._seconds["idle"] += self._marks.seconds(self._last, start)
        self._seconds[stage] += self._marks.seconds(start, stop)
        self._last = stop
