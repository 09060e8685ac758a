"""Fetches a model from the Hugging Face hub: its files at one commit, into the hub's cache on this disk."""

import re
from pathlib import Path

from shards.errors import ModelError, first_line
from shards.progress import draws, progress

PICKLES = ("*.bin", "*.pth", "*.pt", "*.gguf", "*.onnx")
"""Never read here, so never fetched."""


def fetch(name: str, commit: str | None) -> Path:
    """The folder with the files of `name` at a commit (default: the newest); its last path part is the commit.

    Raises ModelError, saying whether the hub has no such name or is unreachable: a misspelt folder also ends up here.
    """
    from huggingface_hub import snapshot_download  # comes with transformers; not needed for reading a cache

    try:
        with progress(
            None, f"fetching {name}", disable=draws()
        ):  # where bars can be drawn, the hub's client has its own
            return Path(snapshot_download(name, revision=commit, ignore_patterns=list(PICKLES)))
    except Exception as exc:  # the hub, the network and the disk: no common base class
        raise ModelError(f"{name}: expected a model folder or a hub name, got no folder, and {_why(exc)}") from exc


def _why(error: Exception) -> str:
    """Why the hub gave no files, in words; for unknown errors the library's own message."""
    from huggingface_hub import errors, is_offline_mode

    match error:
        case errors.HFValidationError():
            return "this cannot be a hub name"
        case errors.GatedRepoError():
            return "the hub asks for an account that may read it"
        case errors.RepositoryNotFoundError():
            return "the hub has no such model, or shows it to other accounts only"
        case errors.RevisionNotFoundError():
            return "the hub no longer has this commit of it"
        case errors.LocalEntryNotFoundError() if is_offline_mode():
            return "HF_HUB_OFFLINE is set and the hub's cache on this disk does not hold it"
        case errors.LocalEntryNotFoundError():
            return f"the hub could not be reached ({_root(error)})"
        case _:
            return f"the hub gave none: {first_line(error)}"


def _root(error: BaseException) -> str:
    """The first cause of an error, without the operating system's error number."""
    while error.__cause__ is not None:
        error = error.__cause__
    return re.sub(r"^\[Errno -?\d+\] ", "", first_line(error))
