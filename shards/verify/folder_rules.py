"""The rules of docs/format.md about the files of a cache and about the whole cache, one function each."""

import fnmatch
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from shards.errors import AlignDistilError
from shards.files import Sums, file_sums
from shards.format import schema
from shards.format.encoding.seal import SEAL_KEYS
from shards.format.index import INDEX_FILE, RowIndex, read_index
from shards.format.manifest import (
    MANIFEST_FILE,
    PLAN_FILE,
    PROVENANCE_FILE,
    SHARD_GLOB,
    TOKENIZER_FILE,
    VOCABULARY_FILE,
    Manifest,
    differences,
    read_json,
    read_provenance,
    read_tokenizer,
    read_vocabulary,
    vocabulary_sha256,
)
from shards.format.plan import Plan, json_sha256
from shards.format.statistics import Histogram
from shards.verify import located
from shards.verify.flipped import Flip, flip_by_sums, flip_of_sealed
from shards.verify.rules import Fault

STATISTICS_TOLERANCE = 1e-5
"""Allowed error of a recomputed statistic, relative above 1: the library chooses the order of a sum."""


def manifest_flip(path: Path) -> str:
    """What explains that the manifest is damaged, for the end of its fault: one flipped bit, or nothing."""
    content = path.read_bytes() if path.is_file() else b""
    return _explained(content, flip_of_sealed(content))


def plan_file(manifest: Manifest, folder: Path) -> Iterator[Fault]:
    """Rule 2: plan.json exists and equals the plan in the manifest; but for older caches, to the byte."""
    path, right = folder / PLAN_FILE, manifest.plan.to_json()
    explained = _explained_by_sums(path, manifest)
    try:
        found = {name: value for name, value in read_json(path).items() if name not in SEAL_KEYS}
    except AlignDistilError as error:
        yield Fault(rule=2, text=f"{error}{explained}")
        return
    for name, value, expected in (faults := list(differences(found, right))):
        yield Fault(rule=2, text=f"{path}: {name}: expected {expected}, got {value}{explained}")
    if not faults and manifest.files is not None and file_sums(path) != manifest.files[PLAN_FILE]:
        expected = manifest.files[PLAN_FILE].sha256
        yield Fault(rule=2, text=f"{path}: expected sha256 {expected}, got {file_sums(path).sha256}{explained}")


def vocabulary(manifest: Manifest, folder: Path) -> Iterator[Fault]:
    """Rule 3: vocabulary.json is the token-to-id map of the identity, and V is its largest id + 1."""
    path, plan = folder / VOCABULARY_FILE, manifest.plan
    try:
        id_by_token = read_vocabulary(folder, manifest)
    except AlignDistilError as error:
        yield Fault(rule=3, text=f"{error}{_explained_by_sums(path, manifest)}")
        return
    found, expected = json_sha256(id_by_token), vocabulary_sha256(plan)
    if found != expected:
        yield Fault(rule=3, text=f"{path}: expected a map with sha256 {expected}, got {found}")
        return
    ids = [token_id for token_id in id_by_token.values() if token_id >= 0]
    if len(ids) < len(id_by_token) or max(ids, default=-1) + 1 != plan.vocabulary_size:
        size = max(ids, default=-1) + 1
        yield Fault(rule=3, text=f"{path}: expected ids 0 to {plan.vocabulary_size - 1}, got ids 0 to {size - 1}")


def tokenizer(manifest: Manifest, folder: Path) -> Iterator[Fault]:
    """Rule 3: tokenizer.json has the sha256 of the plan, if the plan names one."""
    try:
        read_tokenizer(folder, manifest.plan)
    except AlignDistilError as error:
        yield Fault(rule=3, text=f"{error}{_explained_by_sums(folder / TOKENIZER_FILE, manifest)}")


def index(manifest: Manifest, folder: Path) -> Generator[Fault, None, RowIndex | None]:
    """Rule 21: index.arrow has the sha256 of the plan, and its columns. Returns it; None if it is unreadable."""
    try:
        return read_index(folder, manifest.plan)
    except AlignDistilError as error:
        yield Fault(rule=21, text=f"{error}{_explained_by_sums(folder / INDEX_FILE, manifest)}")
    return None


def provenance(folder: Path) -> Iterator[Fault]:
    """Rule 22: provenance.json, where it is there, has the text of its seal."""
    path = folder / PROVENANCE_FILE
    if not path.is_file():
        return
    try:
        read_provenance(folder)
    except AlignDistilError as error:
        content = path.read_bytes()
        yield Fault(rule=22, text=f"{error}{_explained(content, flip_of_sealed(content))}")


def stray_files(plan: Plan, folder: Path, names: Iterable[str] | None = None) -> Iterator[Fault]:
    """Rule 4: the folder has no shard that is not in the manifest. names: the files of its store, if it has one."""
    planned = {shard.file for shard in plan.shards}
    for name in sorted({path.name for path in folder.iterdir()} if names is None else names):
        if fnmatch.fnmatchcase(name, SHARD_GLOB) and name not in planned:
            yield Fault(
                rule=4, text=f"{folder / name}: expected the manifest's {len(plan.shards)} shards and no others"
            )


def shard_file(manifest: Manifest, shard: int, folder: Path) -> Iterator[Fault]:
    """Rule 5: the shard exists, with its recorded bytes and sums."""
    entry = manifest.entries[shard]
    path = folder / entry.file
    if not path.is_file():
        yield Fault(rule=5, text=f"{path}: expected a shard of {entry.bytes} bytes, found no file")
        return
    found = file_sums(path)
    if found.bytes != entry.bytes:
        yield Fault(rule=5, text=f"{path}: expected {entry.bytes} bytes, got {found.bytes}")
    if found.sha256 != entry.sha256:
        explained = ""
        if entry.crc32 is not None and found.bytes == entry.bytes:
            content = path.read_bytes()
            flip = flip_by_sums(content, Sums(entry.bytes, entry.crc32, entry.sha256))
            explained = "; no one flipped bit explains it" if flip is None else f": {flip}, "
            explained += "" if flip is None else located.in_shard(content, flip, manifest.plan, shard)
        yield Fault(rule=5, text=f"{path}: expected sha256 {entry.sha256}, got {found.sha256}{explained}")
    elif found.crc32 != entry.crc32 is not None:
        yield Fault(rule=5, text=f"{path}: expected crc32 {entry.crc32}, got {found.crc32}")


def index_rows(index: RowIndex, first_row: int, columns: Mapping[str, np.ndarray], path: Path) -> Iterator[Fault]:
    """Rule 21: the index has the values of the record batch's columns."""
    rows = slice(first_row, first_row + len(columns[schema.PAIR_ID]))
    for name, values in columns.items():
        indexed = getattr(index, name)[rows]
        for i in np.flatnonzero(indexed != values)[:1]:
            text = f"{path} row {first_row + i}: {name}: expected {values[i]} in the index, got {indexed[i]}"
            yield Fault(rule=21, text=text)


def shard_counts(manifest: Manifest, shard: int, positions: int, entries: int, folder: Path) -> Iterator[Fault]:
    """Rule 20: the shard has the response positions and kept tokens of the manifest."""
    planned, entry = manifest.plan.shards[shard], manifest.entries[shard]
    for name, expected, found in (("positions", planned.positions, positions), ("entries", entry.entries, entries)):
        if found != expected:
            yield Fault(rule=20, text=f"{folder / entry.file}: {name}: expected {expected}, got {found}")


def statistics(manifest: Manifest, histograms: Mapping[str, Histogram], folder: Path) -> Iterator[Fault]:
    """Rule 20: the manifest's statistics are those of the values."""
    path = folder / MANIFEST_FILE
    computed = {name: histogram.summary() for name, histogram in histograms.items()}
    for name, found, expected in differences(dict(manifest.statistics), computed):
        if not _close(found, expected):
            yield Fault(rule=20, text=f"{path}: statistics.{name}: expected {expected}, got {found}")


def _explained(content: bytes, flip: Flip | None) -> str:
    """For the end of a fault of a JSON file."""
    return "" if flip is None else f": {flip}, {located.in_json(flip.undone(content), flip)}"


def _explained_by_sums(path: Path, manifest: Manifest) -> str:
    """For the end of a fault of a file whose sums are in the manifest."""
    if manifest.files is None or not path.is_file():
        return ""
    content = path.read_bytes()
    flip = flip_by_sums(content, manifest.files[path.name])
    if flip is None or path.suffix == ".json":
        return _explained(content, flip)
    return f": {flip}, {located.in_index(content, flip, manifest.plan)}"


def _close(found: str, expected: str) -> bool:
    try:
        difference = abs(float(found) - float(expected))
    except ValueError:
        return False
    return difference <= STATISTICS_TOLERANCE * max(1.0, abs(float(expected)))
