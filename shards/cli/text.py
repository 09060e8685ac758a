"""Text for a terminal of 100 columns."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence

WIDTH = 100
LABEL_WIDTH = 12


def labelled(label: str, texts: Sequence[str]) -> Iterable[str]:
    """Lines with a label before the first; long ones are wrapped."""
    indent = " " * (LABEL_WIDTH + 1)
    for i, text in enumerate(texts):
        head = f"{label:<{LABEL_WIDTH}} " if i == 0 else indent
        yield textwrap.fill(text, WIDTH, initial_indent=head, subsequent_indent=indent)


def duration(seconds: float) -> str:
    """A length of time for a person: 4 s, 2 min 5 s, 3 h 20 min."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun if number == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """rows, batches, passes."""
    return f"{noun}es" if noun.endswith(("s", "ch")) else f"{noun}s"


def skipped_text(skipped: Mapping[str, int]) -> str:
    """ ", 3 skipped as empty": the reasons that occurred; nothing where none did."""
    return "".join(f", {count:,} skipped as {reason}" for reason, count in skipped.items() if count)
