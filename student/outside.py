"""What transformers, accelerate, peft and torch raise about a user's input, in one line."""

import contextlib
from collections.abc import Iterator

import torch
from safetensors import SafetensorError

from shards.errors import AlignDistilError, OptionError, first_line


@contextlib.contextmanager
def naming(where: str, kinds: type[Exception] | tuple[type[Exception], ...] = Exception) -> Iterator[None]:
    """Turn what another library raises into an OptionError that names the option. Our own errors pass."""
    try:
        yield
    except AlignDistilError:
        raise
    except kinds as exc:
        raise OptionError(f"{where}: {first_line(exc)}") from exc


@contextlib.contextmanager
def naming_saves(where: str) -> Iterator[None]:
    """Turn a full or read-only disk into an OptionError, whichever library wrote."""
    try:
        yield
    except AlignDistilError:
        raise
    except (OSError, SafetensorError) as exc:
        raise OptionError(f"{where}: expected to be able to write it, got {first_line(exc)}") from exc
    except RuntimeError as exc:
        if "PytorchStreamWriter" not in str(exc) and "inline_container" not in str(exc):
            raise
        raise OptionError(f"{where}: expected to be able to write it, got {first_line(exc)}") from exc


@contextlib.contextmanager
def naming_workers() -> Iterator[None]:
    """Give an error of a loader's worker process its own line back.

    torch raises it again with the worker's traceback as its message, whose last line is the error.
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


OF_THE_FIRST_STEP = (ValueError, ImportError, NotImplementedError, KeyError, OSError, torch.OutOfMemoryError)
"""What libraries raise about options when they are first used. A step that went well shows that they are right."""
