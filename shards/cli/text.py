"""Text for a terminal of 100 columns."""

import textwrap
from collections.abc import Iterable, Sequence

WIDTH = 100
LABEL_WIDTH = 12


def labelled(label: str, texts: Sequence[str]) -> Iterable[str]:
    """Lines with a label before the first; long ones are wrapped."""
    indent = " " * (LABEL_WIDTH + 1)
    for i, text in enumerate(texts):
        head = f"{label:<{LABEL_WIDTH}} " if i == 0 else indent
        yield textwrap.fill(text, WIDTH, initial_indent=head, subsequent_indent=indent)
