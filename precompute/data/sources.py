"""--data: one source or several, and how many rows of each to take, in which order.

The order is that of the command line: all rows taken from the first source, then from the second. So a row's number,
its pair_id, is a pure function of the sources and their limits.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from shards.places.room import Room
from shards.places.url import is_url

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One source. take: the first rows (a number), an evenly spread share of them (a fraction), or all (None)."""

    name: str
    split: str = "train"
    config: str | None = None
    take: int | Fraction | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Sources in order; limit: the number of rows taken from all of them together. template: arguments of the chat
    template for rows without their own. skip_bad: leave out rows labelled false instead of refusing them. room: where
    files of URLs are copied to; default: that without flags."""

    sources: tuple[Source, ...]
    limit: int | None = None
    template: Mapping[str, Any] = field(default_factory=dict)
    skip_bad: bool = False
    room: Room | None = None

    @classmethod
    def of(cls, name: str, split: str = "train", limit: int | None = None) -> "Data":
        """A single source."""
        return cls(sources=(Source(name=name, split=split),), limit=limit)

    def __str__(self) -> str:
        return ", ".join(source.name for source in self.sources)

    @property
    def places(self) -> str | list[str]:
        """Paths of the sources, or their URLs or hub names; text if there is only one."""
        names = [source.name for source in self.sources]
        found = [str(Path(name).resolve()) if not is_url(name) and Path(name).exists() else name for name in names]
        return found[0] if len(found) == 1 else found


def take_rows(rows: Iterator[Item], take: int | Fraction | None) -> Iterator[Item]:
    """The first `take` items, or an evenly spread share of them; all if None."""
    if not isinstance(take, Fraction):
        yield from islice(rows, take)
        return
    for number, row in enumerate(rows):
        if (number + 1) * take // 1 > number * take // 1:
            yield row


def labels_of(sources: Sequence[Source]) -> list[str]:
    """A different name for each source, as short as possible."""
    kinds: list[Callable[[Source], str]] = [
        lambda source: Path(source.name).name,
        lambda source: source.name,
        lambda source: " ".join(filter(None, (source.name, source.config, source.split))),
    ]
    for kind in kinds:
        labels = [kind(source) for source in sources]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{label} ({number})" for number, label in enumerate(labels, start=1)]
