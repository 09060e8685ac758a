"""Reads finished shards back for the manifest: an entry for each, and the statistics.

Any number of processes read shards back, in any order; one merges their results. Counts and extremes do not
depend on the order. Sums of floats do, so each shard keeps its sum, and these are added exactly and rounded once.
So the manifest has the same bytes for any split of the work and after any interruption.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shards.errors import CacheDamaged
from shards.files import Sums, file_sums, sums_of
from shards.format import schema
from shards.format.batches import ShardOpener, load_batch
from shards.format.encoding import arrays
from shards.format.index import read_index
from shards.format.manifest import (
    PLAN_FILE,
    VOCABULARY_FILE,
    Manifest,
    ShardEntry,
    covered,
    read_json,
    read_tokenizer,
    vocabulary_sha256,
)
from shards.format.plan import Plan, json_sha256
from shards.format.statistics import Histogram, add_positions, new_histograms, position_columns
from shards.format.writer import json_bytes, plan_bytes, shard_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadBack:
    """One shard: its manifest entry, and the sum of the values of each histogram."""

    entry: ShardEntry
    totals: dict[str, float]


@dataclass(slots=True)
class Findings:
    """Results for some shards of a plan, by shard number; `histograms` count over all of them."""

    histograms: dict[str, Histogram]
    shards: dict[int, ReadBack] = field(default_factory=dict)

    @classmethod
    def nothing(cls, plan: Plan) -> "Findings":
        return cls(new_histograms(plan))

    def read_back(self, folder: Path, plan: Plan, shard: int, *, earlier: bool = False) -> None:
        """Read a shard, check all its columns against their crc32, and add its values. Raises CacheDamaged.

        Its sums become the right ones. So no bit of one that an `earlier` run left may be another than was written: its
        record batches must give the same bytes when they are written again.
        """
        path, entries, batches = folder / plan.shards[shard].file, 0, []
        opened, names = ShardOpener(plan).open(path), position_columns(plan)
        for number in range(plan.num_batches(shard)):
            where = f"{path} record batch {number}"
            batch, metadata = load_batch(
                opened, number, plan.first_row(shard, number), plan.most_values(shard, number), where
            )
            columns = arrays.check_crc32(batch, metadata, where)
            add_positions(self.histograms, {name: columns[name].values for name in names}, plan)
            entries += int(columns[schema.SUPPORT_COUNT].values.sum(dtype=np.int64))
            if earlier:
                batches.append((batch, metadata))
        sums = file_sums(path)
        if earlier and (again := sums_of(shard_bytes(plan, batches))) != sums:
            raise CacheDamaged(f"{path}: expected sha256 {again.sha256} as its values give, got {sums.sha256}")
        entry = ShardEntry(file=path.name, entries=entries, bytes=sums.bytes, sha256=sums.sha256, crc32=sums.crc32)
        self.shards[shard] = ReadBack(entry=entry, totals=self._take_totals())

    def merge(self, other: "Findings") -> None:
        """Add the results of other shards."""
        for name, histogram in self.histograms.items():
            histogram.merge(other.histograms[name])
        self.shards |= other.shards

    def _take_totals(self) -> dict[str, float]:
        """The sums since the previous call."""
        totals = {name: histogram.total for name, histogram in self.histograms.items()}
        for histogram in self.histograms.values():
            histogram.total = 0.0
        return totals


def finished(folder: Path, plan: Plan, parts: Iterable[Findings]) -> Manifest:
    """The manifest of a plan whose shards were all read back. Raises CacheDamaged if a file beside them is not its."""
    read_index(folder, plan)
    whole = Findings.nothing(plan)
    for part in parts:
        whole.merge(part)
    found = [whole.shards[number] for number in range(len(plan.shards))]
    for name, histogram in whole.histograms.items():
        histogram.total = math.fsum(shard.totals[name] for shard in found)
    statistics = {name: histogram.summary() for name, histogram in whole.histograms.items()}
    entries, files = tuple(shard.entry for shard in found), _files(folder, plan)
    return Manifest(plan=plan, entries=entries, statistics=statistics, files=files)


def _files(folder: Path, plan: Plan) -> dict[str, Sums]:
    """The sums of the files beside the shards, each compared with the plan first."""
    read_tokenizer(folder, plan)
    files = {name: file_sums(folder / name) for name in covered(plan)}
    if files[PLAN_FILE] not in (sums_of(plan_bytes(plan)), sums_of(json_bytes(plan.to_json()))):  # an older build's
        raise CacheDamaged(f"{folder / PLAN_FILE}: expected the text of the plan, got another")
    expected = vocabulary_sha256(plan)
    found = json_sha256(tokens := read_json(folder / VOCABULARY_FILE))
    if files[VOCABULARY_FILE] != sums_of(json_bytes(tokens)) or expected not in (None, found):
        raise CacheDamaged(f"{folder / VOCABULARY_FILE}: expected a map with sha256 {expected}, got {found}")
    return files
