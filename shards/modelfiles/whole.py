"""Compares a folder with a recorded list of file names and sizes; a checkpoint is judged whole by it.

A kill between two writes, a full disk or an incomplete removal leaves files missing or shorter.
"""

from collections.abc import Mapping
from pathlib import Path

from shards.files import paths_under


def file_sizes(folder: Path, *, without: str) -> dict[str, int]:
    """Bytes of each file under a folder, by relative path, except the file `without`, which records them."""
    files = (path for path in paths_under(folder) if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    return {name: size for name, size in sizes.items() if name != without}


def damage(folder: Path, sizes: Mapping[str, int]) -> str | None:
    """The first difference from the recorded files and sizes, in words; None if there is none.

    The record may be damaged or hostile itself.
    """
    if not isinstance(sizes, Mapping):
        return f"got {type(sizes).__name__} where sizes of files belong"
    for name, size in sizes.items():
        path = folder / name
        if path.is_absolute() != folder.is_absolute() or ".." in path.parts or type(size) is not int:
            return f"got {name!r} of {size!r:.20} bytes in its record"
        if not path.is_file():
            return f"found no {name}"
        if (found := path.stat().st_size) != size:
            return f"got {name} of {found:,} bytes instead of {size:,}"
    return None
