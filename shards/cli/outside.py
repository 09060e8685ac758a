"""Turns errors of other libraries about a user's input or a disk into one line of ours."""

import contextlib
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from shards.cli.command import is_out_of_memory
from shards.errors import AlignDistilError, OptionError, first_line

TORCH_WRITER = ("PytorchStreamWriter", "inline_container", "basic_ios::clear", "Parent directory")
"""Parts of the RuntimeErrors that torch.save raises on a full disk."""

OUR_ROOMS = tuple(Path(__file__).resolve().parents[2] / room for room in ("shards", "precompute", "student"))


@contextlib.contextmanager
def naming(where: str, kinds: type[Exception] | tuple[type[Exception], ...] = Exception) -> Iterator[None]:
    """Turn an error of another library into an OptionError that begins with `where`. Our own errors pass."""
    try:
        yield
    except AlignDistilError:
        raise
    except kinds as exc:
        raise OptionError(f"{where}: {first_line(exc)}") from exc


@contextlib.contextmanager
def naming_saves(where: str) -> Iterator[None]:
    """Turn a full or read-only disk into an OptionError, for any library that writes."""
    try:
        yield
    except AlignDistilError:
        raise
    except (OSError, SafetensorError) as exc:
        raise OptionError(f"{where}: expected to be able to write there, got {first_line(exc)}") from exc
    except Exception as exc:
        plain = type(exc) is Exception  # what tokenizers raises
        if not plain and not (isinstance(exc, RuntimeError) and any(name in str(exc) for name in TORCH_WRITER)):
            raise
        raise OptionError(f"{where}: expected to be able to write there, got {first_line(exc)}") from exc


def is_own_fault(error: BaseException) -> bool:
    """Whether an error comes from our own code, so that a traceback helps. False for a missing file or full memory."""
    if isinstance(error, OSError) or is_out_of_memory(error):
        return False
    # a worker of a loader sends its traceback as the message
    files = re.findall(r'^  File "(.+)", line \d+', str(error), re.MULTILINE) or [
        frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    return any(Path(files[-1]).resolve().is_relative_to(room) for room in OUR_ROOMS)
