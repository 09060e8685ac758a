"""Out: where a build writes. A finished file is on the disk here first, and is then published."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Out:
    """A folder into which a build writes. Can be pickled.

    folder   where files are written, and read back, on this machine
    name     what the user called it, for messages
    """

    folder: Path
    name: str

    def __str__(self) -> str:
        return self.name

    def present(self) -> Mapping[str, int]:
        """The published files: name -> bytes."""
        if not self.folder.is_dir():
            return {}
        return {path.name: path.stat().st_size for path in self.folder.iterdir() if path.is_file()}

    def bring(self, file: str) -> Path:
        """A published file, on this machine."""
        return self.folder / file

    def publish(self, file: str) -> None:
        """Make a finished file of the folder visible to readers; in a folder of this machine it already is."""


def open_out(name: str) -> Out:
    """The place of `--out`."""
    return Out(folder=Path(name), name=name)
