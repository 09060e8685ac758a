"""Whether a command can write where it was told to, asked before the work."""

import shutil
import tempfile
from pathlib import Path

from shards.errors import OptionError


def require_writable(folder: Path, option: str = "out") -> None:
    """Raise OptionError where no file can be made in `folder`, or the folder itself cannot. Leaves nothing there."""
    nearest = nearest_folder(folder)
    if not nearest.is_dir():
        raise OptionError(f"{option}: expected a folder to write into, got {nearest}, a file")
    try:
        # permissions do not tell: root has them all, and /proc looks as any folder does
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as exc:
        found = "one without write permission" if isinstance(exc, PermissionError) else str(exc.strerror)
        raise OptionError(f"{option}: expected a folder to write into, got {nearest}, {found}") from exc


def require_space(folder: Path, projected_bytes: float, option: str = "out") -> str | None:
    """None where the disk has room for what is projected, else a warning; a projection is before compression.

    Raises OptionError where half of it is more than what is free.
    """
    free = shutil.disk_usage(nearest_folder(folder)).free
    if projected_bytes <= free:
        return None
    text = f"{option}: expected room for some {_size(projected_bytes)} in {folder}, got {_size(free)} free"
    if projected_bytes > 2 * free:
        raise OptionError(text)
    return f"{text}; values are compressed, it may just do"


def nearest_folder(folder: Path) -> Path:
    """The folder itself, or what there is of the way to it."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _size(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
