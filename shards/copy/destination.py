"""Where a cache is copied to: what is there already, and what is added, each file only if its name is free."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from shards.copy.folder import FolderStore
from shards.errors import CacheConflict, CacheDamaged
from shards.files import file_sha256
from shards.format.manifest import (
    MANIFEST_FILE,
    PLAN_FILE,
    Manifest,
    ShardEntry,
    read_manifest,
    read_plan,
    refuse_difference,
    require_files,
)
from shards.places.hub import HubStore
from shards.places.out import calling, staging_folder
from shards.places.publisher import Publisher, bring
from shards.places.stores import Store, store_of
from shards.places.url import is_url, parse_url


def open_store(name: str, *, private: bool = True) -> Store:
    """The store of a folder or a URL."""
    if not is_url(name):
        return FolderStore(Path(name))
    url = parse_url(name)
    return HubStore(url=url, private=private) if url.scheme == "hf" else store_of(url)


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """A place that gets a cache. work: a folder of this machine for files on their way."""

    publisher: Publisher
    work: Path

    @classmethod
    def open(cls, store: Store, cache_dir: str | None) -> "Destination":
        work = store.folder if isinstance(store, FolderStore) else staging_folder(store.url, cache_dir)
        return cls(publisher=Publisher(store), work=work)

    @property
    def store(self) -> Store:
        return self.publisher.store

    @property
    def is_folder(self) -> bool:
        return isinstance(self.store, FolderStore)

    @property
    def option(self) -> str:
        """What the user gave `work` by."""
        return "DST" if self.is_folder else "cache_dir"

    def present(self, manifest: Manifest) -> Mapping[str, int]:
        """The files that are there: name -> bytes. Raises CacheConflict unless they can be of the same cache."""
        sizes, where = self.store.sizes(), f"{self.store.url}: holds another cache"
        with (
            TemporaryDirectory(prefix="aligndistil-", ignore_cleanup_errors=True) as name,
            calling(Path(name), str(self.store.url)),
        ):
            folder = Path(name)
            if PLAN_FILE in sizes:
                bring(self.store, PLAN_FILE, folder / PLAN_FILE)
                refuse_difference(read_plan(folder / PLAN_FILE).to_json(), manifest.plan.to_json(), where)
            if MANIFEST_FILE in sizes:
                bring(self.store, MANIFEST_FILE, folder / MANIFEST_FILE)
                refuse_difference(read_manifest(folder).to_json(), manifest.to_json(), where)
        for entry in manifest.entries:
            if entry.file in sizes and PLAN_FILE not in sizes:
                raise CacheConflict(f"{self.store.url}: expected no shards without a {PLAN_FILE}, found {entry.file}")
            if sizes.get(entry.file, entry.bytes) != entry.bytes:
                raise CacheConflict(
                    f"{self.store.url}/{entry.file}: expected nothing, or {entry.bytes} bytes, got {sizes[entry.file]}"
                )
        return sizes

    def require_all(self, manifest: Manifest) -> None:
        """See by one listing that every shard is there with its size, on the hub also with its sha256.

        Raises CacheMissing, CacheDamaged.
        """
        require_files(manifest, self.store.sizes(), str(self.store.url))
        digests = self.store.digests() if isinstance(self.store, HubStore) else {}
        for entry in manifest.entries:
            self._require(entry, digests.get(entry.file, entry.sha256))

    def require_content(self, entry: ShardEntry, temporary: Path) -> None:
        """Read a shard again. Raises CacheMissing, CacheDamaged."""
        try:
            bring(self.store, entry.file, temporary)
            self._require(entry, file_sha256(temporary))
        finally:
            temporary.unlink(missing_ok=True)

    def _require(self, entry: ShardEntry, sha256: str) -> None:
        if sha256 != entry.sha256:
            raise CacheDamaged(f"{self.store.url}/{entry.file}: expected sha256 {entry.sha256}, got {sha256}")
