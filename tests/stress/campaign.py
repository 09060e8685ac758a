"""Campaign: numbered cases that try to break one promise, and defects that it must be able to find."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

Verdict = Literal["held", "missed", "hung"]
"""held: the promise. missed: it was broken, and nothing said so in time. hung: no end within the case's time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one case.

    kind   the group that it is counted under, such as "build: kill before fsync"
    text   one line for a case that did not hold: what was expected, what was found
    others further tries of the same case, such as mutants of a batch, that held
    """

    verdict: Verdict
    kind: str
    text: str = ""
    others: int = 0


def held(kind: str, others: int = 0) -> Outcome:
    return Outcome(verdict="held", kind=kind, others=others)


def missed(kind: str, text: str, others: int = 0) -> Outcome:
    return Outcome(verdict="missed", kind=kind, text=text, others=others)


def hung(kind: str, text: str, others: int = 0) -> Outcome:
    return Outcome(verdict="hung", kind=kind, text=text, others=others)


class Campaign(ABC):
    """A case is a pure function of the seed and its number, so any case can be run again alone.

    name       on the command line
    unit       what is counted: "kills", "faults", "flips", "mutants", "rounds"
    defects    planted on purpose: name -> a context in which the software lacks a check; the campaign must then miss
    """

    seed: int
    name: ClassVar[str]
    unit: ClassVar[str]
    defects: ClassVar[Mapping[str, Callable[[], AbstractContextManager[object]]]] = {}

    @abstractmethod
    def __init__(self, ground: Path, seed: int) -> None:
        """Prepare what all cases share, under the empty folder `ground`."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of cases at full size."""

    @abstractmethod
    def case(self, number: int) -> Outcome:
        """Run one case, and leave nothing behind. An exception is an error of the campaign itself."""
