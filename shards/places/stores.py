"""Store: what every object store and hub repository can do for us. `store_of` gives the one of a URL."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from shards.places.hub import HubStore
from shards.places.objects import ObjectStore, Patience
from shards.places.url import Url


class Store(Protocol):
    """A folder in a store. Can be pickled. Every method raises TransferFailed if the transfer does not end well."""

    @property
    def url(self) -> Url:
        """The folder."""

    def read(self, file: str) -> bytes:
        """The content of a file. Raises CacheMissing if it is not there."""

    def fetch(self, file: str, path: Path) -> None:
        """Write the content of a file into the file at `path`, which exists, and which others may have locked.

        Only a transfer that ends without an error has left it whole. Raises CacheMissing if the file is not there.
        """

    def put(self, file: str, content: bytes | Path, *, create: bool = True) -> bool:
        """Write a whole file, visible only when it is complete.

        create: leave a file of this name as it is. False if there was one, whatever is in it.
        """

    def sizes(self) -> Mapping[str, int]:
        """The files directly in the folder: name -> bytes."""

    def version(self, file: str) -> tuple[str, int]:
        """(a text that changes with the content, bytes) of a file. Raises CacheMissing if it is not there."""


def store_of(url: Url, patience: Patience | None = None) -> Store:
    """The store of a URL. Raises OptionError if the client that it needs is not installed."""
    if url.scheme == "hf":
        return HubStore(url=url)
    return ObjectStore(url, patience)
