"""Checks before the work that the output folder is writable and has room."""

import shutil
import tempfile
from pathlib import Path

from shards.errors import OptionError
from shards.places.url import is_url


def require_here(place: str, option: str = "out") -> None:
    """Raise OptionError for a URL where a place on this machine is needed: `Path` would take it for a folder."""
    if is_url(place):
        raise OptionError(f"{option}: expected a place on this machine, got {place}; only a cache is written to a URL")


def require_writable(folder: Path, option: str = "out") -> None:
    """Raise OptionError if `folder` cannot be created or written to. Leaves nothing there."""
    nearest = nearest_folder(folder)
    if not nearest.is_dir():
        raise OptionError(f"{option}: expected a folder to write into, got {nearest}, a file")
    try:
        # try it: root has all permissions, and /proc looks like any folder
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as exc:
        found = "one without write permission" if isinstance(exc, PermissionError) else str(exc.strerror)
        raise OptionError(f"{option}: expected a folder to write into, got {nearest}, {found}") from exc


def require_space(folder: Path, projected_bytes: float, option: str = "out") -> str | None:
    """None if the disk has room for the projected bytes, else a warning; the projection is before compression.

    Raises OptionError if even half of them exceed the free space.
    """
    free = shutil.disk_usage(nearest_folder(folder)).free
    if projected_bytes <= free:
        return None
    text = f"{option}: expected room for some {_size(projected_bytes)} in {folder}, got {_size(free)} free"
    if projected_bytes > 2 * free:
        raise OptionError(text)
    return f"{text}; values are compressed, so it may be enough"


def require_training_fits(option: str, folder: str, what: str, wanted_bytes: float, checkpoints: int) -> None:
    """Raise OptionError if the disk has no room for a model, called `what`, and for its checkpoints."""
    free = shutil.disk_usage(folder).free
    if free < wanted_bytes:
        raise OptionError(
            f"{option}: expected {wanted_bytes / 1e9:,.1f} GB free for the {what} and {checkpoints:,} checkpoints, got "
            f"{free / 1e9:,.1f} in {folder}; --save_total_limit and --save_steps set how many are kept"
        )


def nearest_folder(folder: Path) -> Path:
    """The folder itself, or its nearest parent that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _size(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
