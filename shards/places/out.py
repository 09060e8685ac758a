"""Out: where a build writes. A finished file is on the disk here first, and is then published."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from shards.errors import AlignDistilError
from shards.files import erase, file_sizes
from shards.locks.lock import LOCK_FILE
from shards.places.publisher import Publisher, bring
from shards.places.room import default_folder
from shards.places.stores import store_of
from shards.places.url import Url, is_url, parse_url


@dataclass(frozen=True, slots=True, kw_only=True)
class Out:
    """A folder into which a build writes, or a URL with a staging folder on this machine. Can be pickled.

    folder      where files are written, and read back, on this machine
    name        what the user called it, for messages
    publisher   of the store of a URL; None for a folder, in which a finished file is published as it is
    """

    folder: Path
    name: str
    publisher: Publisher | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def is_url(self) -> bool:
        return self.publisher is not None

    @property
    def option(self) -> str:
        """The option that chose the folder."""
        return "cache_dir" if self.is_url else "out"

    def at_once(self, projected_bytes: float, shards: int, staged: int) -> float:
        """What so many bytes of shards take here. Of those that go to a URL, `staged` are here at a time."""
        return projected_bytes * min(1.0, staged / max(1, shards)) if self.is_url else projected_bytes

    def present(self) -> Mapping[str, int]:
        """The published files, by one listing: name -> bytes."""
        if self.publisher is not None:
            return self.publisher.store.sizes()
        return file_sizes(self.folder)

    def bring(self, file: str) -> Path:
        """A published file, on this machine."""
        path = self.folder / file
        if self.publisher is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            bring(self.publisher.store, file, path)
        return path

    @contextlib.contextmanager
    def brought(self, file: str) -> Iterator[Path]:
        """A published file, on this machine as long as the context lasts."""
        path = self.bring(file)
        yield path
        if self.is_url:
            path.unlink()

    def publish(self, file: str, *, drop: bool = False, last: bool = False) -> None:
        """Make a finished file of the folder visible to readers; in a folder of this machine it already is.

        drop: the staged copy is no longer needed. last: the file is the proof that others are there.
        Raises CacheConflict if the store has another file of this name.
        """
        if self.publisher is not None:
            self.publisher.publish(file, self.folder / file, drop=drop, last=last)

    def settle(self) -> None:
        """Return when all files that this process published are visible."""
        if self.publisher is not None:
            self.publisher.settle()

    def clear(self) -> None:
        """Empty the staging folder. What an interrupted build left there is not published: that is done again."""
        if self.is_url:
            for path in self.folder.iterdir():
                if path.name == LOCK_FILE:
                    continue
                erase(path)

    def said(self, message: str) -> str:
        """A message with the place that the user named instead of the staging folder."""
        return message.replace(str(self.folder), self.name) if self.is_url else message

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Errors name the place that the user named."""
        with calling(self.folder, self.name) if self.is_url else contextlib.nullcontext():
            yield


@contextlib.contextmanager
def calling(folder: Path, name: str) -> Iterator[None]:
    """Errors about files of a folder of this machine name the place that these are copies of."""
    try:
        yield
    except AlignDistilError as exc:
        if (message := str(exc).replace(str(folder), name)) == str(exc):
            raise
        raise type(exc)(message) from exc


def open_out(name: str, cache_dir: str | None = None) -> Out:
    """The place of `--out`. cache_dir: the folder for what belongs to URLs on this machine."""
    if not is_url(name):
        return Out(folder=Path(name), name=name)
    url = parse_url(name)
    return Out(folder=staging_folder(url, cache_dir), name=str(url), publisher=Publisher(store_of(url)))


def staging_folder(url: Url, cache_dir: str | None) -> Path:
    """Where the files of a build wait until they are published; one folder for each URL."""
    key = hashlib.sha256(str(url).encode()).hexdigest()[:16]
    return (Path(cache_dir) if cache_dir else default_folder()) / "staging" / key
