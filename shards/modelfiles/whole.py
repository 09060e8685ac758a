"""Compares a folder with a recorded list of file names and sizes; a checkpoint is judged whole by it, or surplus.

A kill between two writes, a full disk or an incomplete removal leaves files missing or shorter.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePath

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
        if (
            not name.isprintable()
            or not len(name) < 256
            or PurePath(name).is_absolute()
            or ".." in PurePath(name).parts
        ):
            return f"got {name!r:.80} in its record, which is no file of it"
        if type(size) is not int:
            return f"got {name!r} of {size!r:.20} bytes in its record"
        if not path.is_file():
            return f"found no {name}"
        if (found := path.stat().st_size) != size:
            return f"got {name} of {found:,} bytes instead of {size:,}"
    return None


def surplus(found: Sequence[Path], limit: int | None, kept: Collection[Path]) -> list[Path]:
    """The oldest checkpoints, beyond a limit of all, but none of `kept`. found: oldest first. limit: none if 0 or None.

    A newer one that was never finished must not take the place of the one that has just been written.
    """
    if not limit or limit < 0:
        return []
    others = [folder for folder in found if folder not in kept]
    return others[: max(0, len(found) - max(limit, len(found) - len(others)))]
