"""The cache that is copied: its small files, and its shards one by one, each checked as it is read."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shards.copy.folder import FolderStore
from shards.errors import CacheDamaged, CacheMissing
from shards.files import file_sha256, file_sums
from shards.format.index import INDEX_FILE, read_index
from shards.format.manifest import (
    MANIFEST_FILE,
    PLAN_FILE,
    PROVENANCE_FILE,
    TOKENIZER_FILE,
    VOCABULARY_FILE,
    Manifest,
    ShardEntry,
    differences,
    read_manifest,
    read_plan,
    read_provenance,
    read_tokenizer,
    read_vocabulary,
    require_files,
)
from shards.places.out import calling
from shards.places.publisher import bring
from shards.places.stores import Store

BESIDE = (PLAN_FILE, INDEX_FILE, VOCABULARY_FILE, TOKENIZER_FILE, PROVENANCE_FILE)
"""The files beside the shards, in the order in which they are written; the manifest comes after all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A finished cache in a store. folder: of this machine, with copies of the manifest and of the files beside it."""

    store: Store
    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, store: Store, folder: Path) -> "Source":
        """Read and check the small files, and see that every shard is there. Raises CacheMissing, CacheDamaged."""
        with calling(folder, str(store.url)):
            sizes = store.sizes()
            for file in (file for file in (MANIFEST_FILE, *BESIDE) if file in sizes):
                bring(store, file, folder / file)
            manifest = read_manifest(folder)
            require_files(manifest, sizes, str(store.url))
            _check_small_files(folder, manifest)
        return cls(store=store, folder=folder, manifest=manifest)

    @property
    def beside(self) -> tuple[str, ...]:
        """Those of BESIDE that this cache has."""
        return tuple(
            file for file in BESIDE if file != TOKENIZER_FILE or self.manifest.plan.tokenizer_sha256 is not None
        )

    @contextmanager
    def shard(self, entry: ShardEntry, temporary: Path | None) -> Iterator[Path]:
        """A shard on this machine, checked: as a new file `temporary`, or, without one, the source's own file.

        Raises CacheDamaged if its sha256 is not the manifest's, for a transfer at two attempts.
        """
        if temporary is None:
            assert isinstance(self.store, FolderStore)
            path, attempts = self.store.folder / entry.file, 1
        else:
            path, attempts = temporary, 2
        for _ in range(attempts):
            if temporary is not None:
                bring(self.store, entry.file, temporary)
            if (found := file_sha256(path)) == entry.sha256:
                break
        else:
            raise CacheDamaged(f"{self.store.url}/{entry.file}: expected sha256 {entry.sha256}, got {found}")
        yield path


def _check_small_files(folder: Path, manifest: Manifest) -> None:
    plan = manifest.plan
    for name, found, expected in differences(read_plan(folder / PLAN_FILE).to_json(), plan.to_json()):
        raise CacheDamaged(f"{folder / PLAN_FILE}: {name}: expected {expected} as in the manifest, got {found}")
    read_index(folder, plan)
    read_tokenizer(folder, plan)
    read_vocabulary(folder, manifest)
    for file, recorded in (manifest.files or {}).items():
        if (sums := file_sums(folder / file)) != recorded:
            raise CacheDamaged(f"{folder / file}: expected sha256 {recorded.sha256}, got {sums.sha256}")
    if not (folder / PROVENANCE_FILE).exists():
        raise CacheMissing(f"{folder}: expected a cache, found no {PROVENANCE_FILE}")
    read_provenance(folder)
