"""Says a line to the person who watches a training: through Python's logging, at INFO."""

import logging
import sys

from tqdm import tqdm

NAME = "aligndistil"
"""The logger of all lines. Its level decides what is shown; a handler of the user's own takes the place of ours."""


class _AboveBars(logging.Handler):
    """Writes to the standard output as it is now, above the bars that tqdm is drawing."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def say(text: str) -> None:
    """Show a line, or several, at level INFO; where nobody has set up the logger, on the standard output."""
    logger = logging.getLogger(NAME)
    if not logger.handlers:
        logger.addHandler(_AboveBars())
        logger.propagate = False
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)
    logger.info(text)
