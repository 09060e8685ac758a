"""Whether a folder is still as it was when it was finished: the names and sizes of its files.

A kill between two writes, a disk that filled up or a removal that stopped half-way leave other files or shorter ones.
"""

from collections.abc import Mapping
from pathlib import Path


def file_sizes(folder: Path, *, without: str) -> dict[str, int]:
    """Bytes of each file under a folder, by its path in it; the file `without`, which holds them, is left out."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    return {name: size for name, size in sizes.items() if name != without}


def damage(folder: Path, sizes: Mapping[str, int]) -> str | None:
    """What a folder lacks of the files that it was finished with, in words; None where it is whole."""
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"found no {name}"
        if (found := path.stat().st_size) != size:
            return f"got {name} of {found:,} bytes instead of {size:,}"
    return None
