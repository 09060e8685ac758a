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

from shards.files import file_sha256
from shards.format import schema
from shards.format.batches import BatchReader
from shards.format.index import read_index
from shards.format.manifest import Manifest, ShardEntry
from shards.format.plan import Plan
from shards.format.statistics import Histogram, add_positions, new_histograms, position_columns


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

    def read_back(self, folder: Path, plan: Plan, shard: int) -> None:
        """Read a shard, check its checksums and add its values. Raises CacheDamaged."""
        reader, names = BatchReader(folder, plan), position_columns(plan)
        entries = 0
        for batch in range(plan.num_batches(shard)):
            columns = {name: values for name, (values, _) in reader.read(shard, batch, names).items()}
            add_positions(self.histograms, columns, plan)
            entries += int(columns[schema.SUPPORT_COUNT].sum(dtype=np.int64))
        path = folder / plan.shards[shard].file
        entry = ShardEntry(file=path.name, entries=entries, bytes=path.stat().st_size, sha256=file_sha256(path))
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
    """The manifest of a plan whose shards were all read back. Raises CacheDamaged if the index is not the plan's."""
    read_index(folder, plan)
    whole = Findings.nothing(plan)
    for part in parts:
        whole.merge(part)
    found = [whole.shards[number] for number in range(len(plan.shards))]
    for name, histogram in whole.histograms.items():
        histogram.total = math.fsum(shard.totals[name] for shard in found)
    statistics = {name: histogram.summary() for name, histogram in whole.histograms.items()}
    return Manifest(plan=plan, entries=tuple(shard.entry for shard in found), statistics=statistics)
