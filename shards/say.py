"""What commands say, and at which of Python's logging levels: the one place that --quiet and the levels act on.

    print, result               standard output   always: what a command was asked to print
    warn            WARNING     standard error    also with --quiet
    say             INFO        standard output   plans, notes, summaries, "done"; not with --quiet
    progress        INFO        standard error    bars and lines of `shards.progress`; not with --quiet

Errors are one line on the standard error, in any case (`shards.cli.command.run_command`). The logger is `aligndistil`.
Its level decides, and handlers of the user's own take the place of ours.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator

from tqdm import tqdm

NAME = "aligndistil"
"""The logger of all lines; those of `shards.progress` come from its child of that name."""

LIBRARIES = ("transformers", "datasets", "trl", "huggingface_hub")
"""Loggers that follow a level that was asked for."""


class _AboveBars(logging.Handler):
    """Writes to the standard streams as they are now, above the bars that tqdm is drawing."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stdout if record.levelno < logging.WARNING and record.name == NAME else sys.stderr
        word = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        tqdm.write(word + record.getMessage(), file=stream)
        stream.flush()


def logger(child: str = "") -> logging.Logger:
    """Our logger, or a child of it. Where nobody has set it up, it writes to the standard streams from INFO on."""
    found = logging.getLogger(NAME)
    if not found.handlers:
        found.addHandler(_AboveBars())
        found.propagate = False
        if found.level == logging.NOTSET:
            found.setLevel(logging.INFO)
    return found.getChild(child) if child else found


def say(text: str) -> None:
    """Show a line, or several, that a person who is not waiting for them can do without."""
    logger().info("%s", text)


def warn(text: str) -> None:
    """Show one line about something that should be looked at. `warning: ` is put before it."""
    logger().warning("%s", text)


def result(text: str) -> None:
    """Print what a command was asked for, above any bar; --quiet does not act on it."""
    tqdm.write(text, file=sys.stdout)


def speaks() -> bool:
    """Whether what `say` is given is shown."""
    return logger().isEnabledFor(logging.INFO)


@contextlib.contextmanager
def at_level(*, quiet: bool = False, level: int | None = None) -> Iterator[None]:
    """Show less, or more, until the context ends. quiet: warnings and errors only. level: as asked for, or None.

    The libraries' loggers follow a level, but stay as they are with `quiet`: from WARNING on.
    """
    asked = {NAME: max(level or logging.INFO, logging.WARNING)} if quiet else {} if level is None else {NAME: level}
    asked |= dict.fromkeys(LIBRARIES if level is not None else (), level or logging.NOTSET)
    logger()
    earlier = {name: logging.getLogger(name).level for name in asked}
    for name, wanted in asked.items():
        logging.getLogger(name).setLevel(wanted)
    try:
        yield
    finally:
        for name, was in earlier.items():
            logging.getLogger(name).setLevel(was)
