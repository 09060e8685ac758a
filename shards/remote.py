"""Opens the mirror of a cache in a store; looks at a build that is not finished, and at what a URL names."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import CacheMissing
from shards.format.manifest import (
    MANIFEST_FILE,
    PLAN_FILE,
    PROVENANCE_FILE,
    SHARD_GLOB,
    Manifest,
    plan_of,
    read_manifest,
    read_plan,
    read_provenance,
    unsealed,
)
from shards.format.plan import Plan
from shards.places.mirror import Mirror, open_mirror
from shards.places.room import Room
from shards.places.stores import store_of
from shards.places.url import is_url, parse_url


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A build that is not finished: its plan, how many of its shards are there, and its provenance if known."""

    plan: Plan
    done: int
    provenance: Mapping[str, Any]


def mirror_of(url: str, room: Room | None = None) -> Mirror:
    """The mirror of the cache at a URL; room: default is that without flags.

    Raises CacheMissing, saying whether a build was begun there.
    """
    store = store_of(parse_url(url))
    try:
        return open_mirror(store, room or Room.of(), names=MANIFEST_FILE, evict=SHARD_GLOB)
    except CacheMissing as exc:
        if PLAN_FILE in store.sizes():
            text = "expected a finished cache, found a build that was begun; run it again to finish"
        else:
            text = f"expected a cache, found no {MANIFEST_FILE}"
        raise CacheMissing(f"{store.url}: {text}") from exc


def mirrored_manifest(mirror: Mirror) -> Manifest:
    """The manifest of a mirror's cache; from now on its files are checked on arrival."""
    manifest = read_manifest(mirror.folder, str(mirror))
    beside = manifest.files or {}
    mirror.expected = {entry.file: (entry.bytes, entry.sha256) for entry in manifest.entries} | {
        name: (sums.bytes, sums.sha256) for name, sums in beside.items()
    }
    return manifest


def begun(place: str) -> Begun | None:
    """The unfinished build in a folder or at a URL; None if there is none, or a finished cache."""
    store = store_of(parse_url(place)) if is_url(place) else None
    folder = Path(place)
    names = set(store.sizes()) if store else {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if MANIFEST_FILE in names or PLAN_FILE not in names:
        return None
    plan = plan_of(store.read(PLAN_FILE), f"{place}/{PLAN_FILE}") if store else read_plan(folder / PLAN_FILE)
    provenance: Mapping[str, Any] = {}
    if PROVENANCE_FILE in names:
        where = f"{place}/{PROVENANCE_FILE}"
        provenance = unsealed(store.read(PROVENANCE_FILE), where)[0] if store else read_provenance(folder)
    done = sum(shard.file in names for shard in plan.shards)
    return Begun(plan=plan, done=done, provenance=provenance)


def content_of(url: str) -> str | None:
    """A text that changes with what a URL names: a cache or a file; None if nothing is there."""
    place = parse_url(url)
    try:
        return hashlib.sha256(store_of(place).read(MANIFEST_FILE)).hexdigest()
    except CacheMissing:
        pass
    try:
        return " ".join(map(str, store_of(place.parent).version(place.name)))
    except CacheMissing:
        return None
