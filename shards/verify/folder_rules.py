"""The rules of docs/format.md about the files of a cache and about the whole cache, one function each."""

import fnmatch
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import AlignDistilError
from shards.files import file_sha256
from shards.format import schema
from shards.format.index import RowIndex
from shards.format.manifest import (
    MANIFEST_FILE,
    PLAN_FILE,
    SHARD_GLOB,
    VOCABULARY_FILE,
    Manifest,
    differences,
    read_json,
    read_tokenizer,
)
from shards.format.plan import Plan, canonical_json
from shards.format.statistics import Histogram
from shards.verify.rules import Fault

STATISTICS_TOLERANCE = 1e-5
"""Allowed error of a recomputed statistic, relative above 1: the library chooses the order of a sum."""


def plan_file(plan: Plan, folder: Path) -> Iterator[Fault]:
    """Rule 2: plan.json exists and equals the plan in the manifest."""
    path = folder / PLAN_FILE
    try:
        for name, found, expected in differences(read_json(path), plan.to_json()):
            yield Fault(rule=2, text=f"{path}: {name}: expected {expected}, got {found}")
    except AlignDistilError as error:
        yield Fault(rule=2, text=str(error))


def vocabulary(plan: Plan, folder: Path) -> Iterator[Fault]:
    """Rule 3: vocabulary.json is the token-to-id map of the identity, and V is its largest id + 1."""
    path = folder / VOCABULARY_FILE
    try:
        id_by_token = read_json(path)
    except AlignDistilError as error:
        yield Fault(rule=3, text=str(error))
        return
    found, expected = hashlib.sha256(canonical_json(id_by_token)).hexdigest(), _vocabulary_sha256(plan.identity)
    if found != expected:
        yield Fault(rule=3, text=f"{path}: expected a map with sha256 {expected}, got {found}")
        return
    ids = [token_id for token_id in id_by_token.values() if isinstance(token_id, int) and token_id >= 0]
    if len(ids) < len(id_by_token) or max(ids, default=-1) + 1 != plan.vocabulary_size:
        size = max(ids, default=-1) + 1
        yield Fault(rule=3, text=f"{path}: expected ids 0 to {plan.vocabulary_size - 1}, got ids 0 to {size - 1}")


def tokenizer(plan: Plan, folder: Path) -> Iterator[Fault]:
    """Rule 3: tokenizer.json has the sha256 of the plan, if the plan names one."""
    try:
        read_tokenizer(folder, plan)
    except AlignDistilError as error:
        yield Fault(rule=3, text=str(error))


def stray_files(plan: Plan, folder: Path, names: Iterable[str] | None = None) -> Iterator[Fault]:
    """Rule 4: the folder has no shard that is not in the manifest. names: the files of its store, if it has one."""
    planned = {shard.file for shard in plan.shards}
    for name in sorted({path.name for path in folder.iterdir()} if names is None else names):
        if fnmatch.fnmatchcase(name, SHARD_GLOB) and name not in planned:
            yield Fault(
                rule=4, text=f"{folder / name}: expected the manifest's {len(plan.shards)} shards and no others"
            )


def shard_file(manifest: Manifest, shard: int, folder: Path) -> Iterator[Fault]:
    """Rule 5: the shard exists, with its recorded bytes and sha256."""
    entry = manifest.entries[shard]
    path = folder / entry.file
    if not path.is_file():
        yield Fault(rule=5, text=f"{path}: expected a shard of {entry.bytes} bytes, found no file")
        return
    size, sha256 = path.stat().st_size, file_sha256(path)
    if size != entry.bytes:
        yield Fault(rule=5, text=f"{path}: expected {entry.bytes} bytes, got {size}")
    if sha256 != entry.sha256:
        yield Fault(rule=5, text=f"{path}: expected sha256 {entry.sha256}, got {sha256}")


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


def _vocabulary_sha256(identity: Mapping[str, Any]) -> str | None:
    tokenizer = identity.get("tokenizer")
    return tokenizer.get("vocabulary_sha256") if isinstance(tokenizer, Mapping) else None


def _close(found: str, expected: str) -> bool:
    try:
        difference = abs(float(found) - float(expected))
    except ValueError:
        return False
    return difference <= STATISTICS_TOLERANCE * max(1.0, abs(float(expected)))
