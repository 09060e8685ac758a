"""python -m shards.verify DIR: checks every rule of docs/format.md. Exit code 0 if all hold, else 1.

Each fault is one line, naming file and row. Rows count through the whole cache from 0, as in shards.inspect.
"""

import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shards.cache import ShardCache
from shards.cli.command import OneLineErrors, run_command
from shards.cli.flags.cache_flags import add_cache_flags, room_of
from shards.cli.flags.quiet_flag import add_quiet_flag
from shards.errors import CacheDamaged, CacheMissing
from shards.format import schema
from shards.format.batches import ShardOpener, load_batch
from shards.format.content import rules
from shards.format.encoding import arrays, codec
from shards.format.encoding.selection import Selection
from shards.format.index import INDEX_FILE, RowIndex, indexed_columns
from shards.format.manifest import (
    MANIFEST_FILE,
    PLAN_FILE,
    PROVENANCE_FILE,
    TOKENIZER_FILE,
    VOCABULARY_FILE,
    Manifest,
    read_manifest,
)
from shards.format.plan import Plan
from shards.format.statistics import Histogram, add_positions, new_histograms, position_columns
from shards.places.mirror import Mirror
from shards.places.room import Room
from shards.places.url import is_url
from shards.progress import commanded, progress
from shards.remote import mirror_of, mirrored_manifest
from shards.say import result, say
from shards.verify import folder_rules
from shards.verify.located import rows_text
from shards.verify.names import SeenNames
from shards.verify.rules import RULES, Fault

MAX_PRINTED = 20
"""Printed faults of one rule; further ones are only counted."""


@dataclass(slots=True, kw_only=True)
class Seen:
    """What was read so far: names of rows, and for batches without faults the distribution and counts of the values.

    index: of the cache; None if it is unreadable.
    """

    histograms: Mapping[str, Histogram]
    index: RowIndex | None
    names: SeenNames = field(default_factory=SeenNames)
    positions: int = 0
    entries: int = 0

    def add(self, batch: pa.RecordBatch, plan: Plan) -> None:
        columns = {name: batch.column(name).flatten().to_numpy() for name in position_columns(plan)}
        add_positions(self.histograms, columns, plan)
        self.positions += len(columns[schema.SUPPORT_COUNT])
        self.entries += int(columns[schema.SUPPORT_COUNT].sum(dtype=np.int64))


def verify(folder: str | Path, room: Room | None = None) -> Iterator[Fault]:
    """All faults of the cache in a folder or at a URL, as they are found; a progress bar on stderr.

    Every file of a URL is fetched, even if there is a copy of it on this machine. room: where the copies are.
    """
    mirror = None
    try:
        mirror = mirror_of(str(folder), room) if is_url(folder) else None
        manifest = read_manifest(Path(folder)) if mirror is None else mirrored_manifest(mirror)
    except (CacheMissing, CacheDamaged) as error:
        explained = folder_rules.manifest_flip((Path(folder) if mirror is None else mirror.folder) / MANIFEST_FILE)
        yield Fault(rule=1, text=f"{error}{explained}")
        return
    if mirror is None:
        yield from _faults(manifest, Path(folder), None)
        return
    for fault in _faults(manifest, mirror.folder, mirror):
        yield replace(fault, text=fault.text.replace(str(mirror.folder), str(mirror)))


def _faults(manifest: Manifest, folder: Path, mirror: Mirror | None) -> Iterator[Fault]:
    """Rules 2 to 22."""
    plan = manifest.plan
    if not (yield from _arrives(mirror, PLAN_FILE, 2)):
        yield from folder_rules.plan_file(manifest, folder)
    if not (yield from _arrives(mirror, VOCABULARY_FILE, 3)):
        yield from folder_rules.vocabulary(manifest, folder)
    if plan.tokenizer_sha256 is None or not (yield from _arrives(mirror, TOKENIZER_FILE, 3)):
        yield from folder_rules.tokenizer(manifest, folder)
    yield from folder_rules.stray_files(plan, folder, None if mirror is None else mirror.sizes)
    index = None
    if not (yield from _arrives(mirror, INDEX_FILE, 21)):
        index = yield from folder_rules.index(manifest, folder)
    if mirror is None or (PROVENANCE_FILE in mirror.sizes and not (yield from _arrives(mirror, PROVENANCE_FILE, 22))):
        yield from folder_rules.provenance(folder)
    yield from _shards(manifest, folder, index, mirror)


def _arrives(mirror: Mirror | None, file: str, rule: int) -> Generator[Fault, None, bool]:
    """Fetch a file of a URL. Its fault if it is missing or differs from the list or the manifest; True if it does."""
    try:
        if mirror is not None:
            mirror.ensure(file, fresh=True)
    except (CacheMissing, CacheDamaged) as error:
        yield Fault(rule=rule, text=str(error))
        return True
    return False


def _shards(manifest: Manifest, folder: Path, index: RowIndex | None, mirror: Mirror | None) -> Iterator[Fault]:
    """Rules 5 to 21. Counts and statistics are checked only if all values behind them were read and had no fault."""
    seen, sound = Seen(histograms=new_histograms(manifest.plan), index=index), True
    opener = ShardOpener(manifest.plan)
    with progress(None, "verifying", total=manifest.plan.rows, unit="row") as bar:
        for i, shard in enumerate(manifest.plan.shards):
            if (yield from _arrives(mirror, shard.file, 5)):
                sound = False
                continue
            yield from folder_rules.shard_file(manifest, i, folder)
            if not (folder / shard.file).is_file():
                sound = False
                continue
            positions, entries, clean = seen.positions, seen.entries, True
            for fault in _contents(opener, i, folder, seen):
                clean = False
                yield fault
            if clean:
                found = (seen.positions - positions, seen.entries - entries)
                yield from folder_rules.shard_counts(manifest, i, *found, folder)
            sound = sound and clean
            bar.update(shard.rows)
    yield from _repeated_names(manifest.plan, seen.names, folder)
    if sound:
        yield from folder_rules.statistics(manifest, seen.histograms, folder)


def _repeated_names(plan: Plan, names: SeenNames, folder: Path) -> Iterator[Fault]:
    """Rule 9: every sample_id is unique in the cache."""
    first_rows = [shard.first_row for shard in plan.shards]
    for row, sample_id, first in names.repeated():
        path = folder / plan.shards[bisect_right(first_rows, row) - 1].file
        text = f"{schema.SAMPLE_ID}: expected a name of its own, got that of row {first}"
        yield Fault(rule=9, text=f"{path} row {row} ({sample_id!r}): {text}")


def _contents(opener: ShardOpener, shard: int, folder: Path, seen: Seen) -> Iterator[Fault]:
    """Rules 6 to 19 and 21 for one shard."""
    plan = opener.plan
    path = folder / plan.shards[shard].file
    try:
        file = opener.open(path)
    except CacheDamaged as error:
        yield Fault(rule=6, text=str(error))
        return
    batches = plan.num_batches(shard)
    if len(file.blocks) != batches:
        yield Fault(rule=7, text=f"{path}: expected {batches} record batches, got {len(file.blocks)}")
        return
    for index in range(batches):
        first_row = plan.first_row(shard, index)
        where = f"{path} record batch {index}"
        rows = rows_text(plan, shard, index, 0, plan.num_rows(shard, index) - 1)
        try:
            batch, metadata = load_batch(file, index, first_row, plan.most_values(shard, index), where)
        except CacheDamaged as error:
            yield Fault(rule=7, text=f"{error} ({rows})")
            continue
        try:
            arrays.check_crc32(batch, metadata, where)
        except CacheDamaged as error:
            yield Fault(rule=8, text=f"{error} ({rows})")
            continue
        faults = list(_rows(batch, plan, first_row, path, seen))
        yield from faults
        if not faults:
            seen.add(batch, plan)
            if seen.index is not None:
                yield from folder_rules.index_rows(seen.index, first_row, indexed_columns(batch), path)


def _rows(batch: pa.RecordBatch, plan: Plan, first_row: int, path: Path, seen: Seen) -> Iterator[Fault]:
    """Rules 9 to 19 for the rows of one record batch."""
    for i, row in enumerate(codec.split_rows(arrays.flatten(batch), plan.columns())):
        number = first_row + i
        for rule, text in _row(row, number, plan, seen):
            yield Fault(rule=rule, text=f"{path} row {number} ({row[schema.SAMPLE_ID]!r}): {text}")


def _row(row: Mapping[str, Any], number: int, plan: Plan, seen: Seen) -> Iterator[tuple[int, str]]:
    """(rule, fault) up to the first stage with a fault in the row."""
    faults = [*rules.shape_faults(row, plan, plan.columns())]
    yield from faults
    if faults:
        return
    (response,) = codec.responses([row], codec.decode_scores([row], plan, Selection.everything(plan)))
    seen.names.add(response, number)
    yield from rules.faults(response, plan)


def report(folder: str, room: Room) -> bool:
    """Print every fault as it is found. Returns whether there is none."""
    found: Counter[int] = Counter()
    for fault in verify(folder, room):
        found[fault.rule] += 1
        if found[fault.rule] <= MAX_PRINTED:
            result(str(fault))
    for rule, count in sorted(found.items()):
        if count > MAX_PRINTED:
            result(f"{folder}: {count - MAX_PRINTED:,} more faults [rule {rule}: {RULES[rule]}]")
    if not found:
        cache = ShardCache(folder, room)
        say(f"{len(cache):,} rows, {len(cache.plan.shards):,} shards: all checks hold")
    return not found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = OneLineErrors(prog="python -m shards.verify", description=__doc__)
    parser.add_argument("folder", metavar="DIR", nargs="?", default="shards", help="folder or URL of the cache")
    add_cache_flags(parser)
    add_quiet_flag(parser)
    options = parser.parse_args(arguments)
    with commanded(quiet=options.quiet):
        sound = report(options.folder, room_of(options))
    if not sound:
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
