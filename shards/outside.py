"""What other libraries raise about a user's input, or about a disk, as one line of ours."""

import contextlib
from collections.abc import Iterator

from safetensors import SafetensorError

from shards.errors import AlignDistilError, OptionError, first_line

TORCH_WRITER = ("PytorchStreamWriter", "inline_container")
"""What torch.save names in the RuntimeError that it raises where a disk is full."""


@contextlib.contextmanager
def naming(where: str, kinds: type[Exception] | tuple[type[Exception], ...] = Exception) -> Iterator[None]:
    """Turn what another library raises into an OptionError that begins with `where`. Our own errors pass."""
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
        raise OptionError(f"{where}: expected to be able to write there, got {first_line(exc)}") from exc
    except RuntimeError as exc:
        if not any(name in str(exc) for name in TORCH_WRITER):
            raise
        raise OptionError(f"{where}: expected to be able to write there, got {first_line(exc)}") from exc
