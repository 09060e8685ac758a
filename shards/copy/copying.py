"""Copies a cache: the plan first, then shards on several threads, and the manifest when all are there."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from shards.cli.space import require_space, require_writable
from shards.copy.card import CARD_FILE, card
from shards.copy.destination import Destination
from shards.copy.folder import FolderStore
from shards.copy.source import Source
from shards.files import remove_temporary_files, temporary_name
from shards.format.manifest import MANIFEST_FILE, PLAN_FILE, Manifest, ShardEntry
from shards.locks.lock import exclusive
from shards.places.hub import HubStore
from shards.places.stores import Store
from shards.progress import progress

Verify = Literal["sizes", "content"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What a copy did. present: shards that were there before."""

    shards: int
    bytes: int
    present: int
    notes: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A copy of one cache. license: for the card of a hub repository, or None."""

    source: Source
    destination: Destination
    jobs: int
    verify: Verify
    license: str | None = None

    def run(self) -> Copied:
        """Copy what is missing. Raises CacheConflict, CacheDamaged, CacheMissing, OptionError, TransferFailed."""
        destination, manifest = self.destination, self.source.manifest
        there = destination.present(manifest)
        left = [entry for entry in manifest.entries if entry.file not in there]
        staged = 1.0 if destination.is_folder else min(1.0, (self.jobs + 1) / max(1, len(left)))
        note = require_space(destination.work, staged * sum(entry.bytes for entry in left), destination.option)
        remove_temporary_files(destination.work)
        for file in self.source.beside:
            if file not in there:
                destination.publisher.publish(file, self.source.folder / file, last=file == PLAN_FILE)
        self._each(left, self._copy, "copying")
        destination.publisher.settle()
        destination.require_all(manifest)
        if self.verify == "content":
            self._each([*manifest.entries, *_beside(manifest)], self._read_again, "verifying")
        notes = [*filter(None, [note]), *self._card(there)]
        if MANIFEST_FILE not in there:
            destination.publisher.publish(MANIFEST_FILE, self.source.folder / MANIFEST_FILE, last=True)
        present = len(manifest.entries) - len(left)
        return Copied(shards=len(left), bytes=sum(entry.bytes for entry in left), present=present, notes=notes)

    def _each(self, entries: Sequence[ShardEntry], work: Callable[[ShardEntry], None], verb: str) -> None:
        """Do `work` for each shard, with a bar of bytes. After an error no further ones are begun."""
        bar = progress(None, verb, total=sum(e.bytes for e in entries), unit="B", disable=not entries)
        with bar, ThreadPoolExecutor(self.jobs) as pool:
            futures = {pool.submit(work, entry): entry.bytes for entry in entries}
            try:
                for future in as_completed(futures):
                    future.result()
                    bar.update(futures[future])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _copy(self, entry: ShardEntry) -> None:
        direct = isinstance(self.source.store, FolderStore) and not self.destination.is_folder
        temporary = None if direct else temporary_name(self.destination.work, entry.file, ".copy")
        with self.source.shard(entry, temporary) as path:
            self.destination.publisher.publish(entry.file, path, drop=temporary is not None)

    def _read_again(self, entry: ShardEntry) -> None:
        self.destination.require_content(entry, temporary_name(self.destination.work, entry.file, ".copy"))

    def _card(self, there: Iterable[str]) -> list[str]:
        """Give a hub repository a card, unless it has one. Returns notes."""
        store = self.destination.store
        if not isinstance(store, HubStore) or MANIFEST_FILE in there:
            return []
        if CARD_FILE in there:
            return [f"{store.url}/{CARD_FILE}: kept as it is; the card of a cache names its shards under data_files"]
        path = self.destination.work / CARD_FILE
        path.write_text(card(self.source.manifest, self.source.folder, store.url, self.license), encoding="utf-8")
        self.destination.publisher.publish(CARD_FILE, path, drop=True)
        return []


def _beside(manifest: Manifest) -> list[ShardEntry]:
    """The files beside the shards that have sums."""
    files = manifest.files or {}
    return [ShardEntry(file=file, entries=0, bytes=s.bytes, sha256=s.sha256) for file, s in files.items()]


def copy(
    source: Store,
    destination: Store,
    *,
    jobs: int = 4,
    verify: Verify = "sizes",
    license: str | None = None,
    cache_dir: str | None = None,
) -> Copied:
    """Copy a finished cache. A copy that was interrupted goes on: what is there is not sent again."""
    to = Destination.open(destination, cache_dir)
    require_writable(to.work, to.option)
    with exclusive(to.work), TemporaryDirectory(prefix="aligndistil-", ignore_cleanup_errors=True) as folder:
        opened = Source.open(source, Path(folder))
        return Copy(source=opened, destination=to, jobs=jobs, verify=verify, license=license).run()
