"""Turns a loader worker's error into one line; lists the library errors that a first step may raise."""

import contextlib
from collections.abc import Iterator

from shards.errors import AlignDistilError, OptionError, first_line


@contextlib.contextmanager
def naming_workers() -> Iterator[None]:
    """Replace an error of a loader's worker process by its one line.

    torch raises it again with the worker's traceback as its message; the last line of that is the error.
    """
    try:
        yield
    except AlignDistilError as exc:
        lines = str(exc).strip().splitlines()
        if len(lines) == 1 or not lines[0].startswith("Caught "):
            raise
        raise type(exc)(lines[-1].partition(": ")[2]) from exc
    except RuntimeError as exc:
        if not str(exc).startswith("DataLoader worker"):
            raise
        raise OptionError(f"dataloader_num_workers: {first_line(exc)}") from exc


OF_THE_FIRST_STEP = (ValueError, TypeError, ImportError, NotImplementedError, KeyError, OSError, RuntimeError)
"""Errors of libraries about options when they are first used. A successful step shows that they are right."""
