"""Measures the reading of a cache: from the file to the tensors of a micro-batch, as a whole and in parts.

Everything is a list of steps. Each does its work once and returns how many response positions it served. They are timed
one after the other, for several rounds; the results are medians.
"""

import statistics
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import zstandard
from tqdm.auto import tqdm

from benchmarks.loading.options import LoadingOptions
from shards import ShardCache, TeacherSpec
from shards.format.encoding import codec
from shards.teacher.compose import compose
from student.data.collate import Collator
from student.data.order import BatchItem, GlobalBatchSampler
from student.data.responses import CachedResponses, MicroBatch

Step = Callable[[], None]


class Loader:
    """A cache as DistillTrainer's loader reads it: the sampler, the data set and the collator, in this process."""

    def __init__(self, folder: Path, options: LoadingOptions) -> None:
        spec = TeacherSpec.preset(options.teacher)
        self.data = CachedResponses([folder]).for_teacher(spec)
        self.cache: ShardCache = self.data.caches[0]
        self.collator = Collator(spec=spec, nodes=self.data.nodes, reduction="sequence", pad_token_id=0)
        size = options.micro_batch_size
        self.sampler = GlobalBatchSampler(
            self.data.lengths,
            seed=options.seed,
            micro_batch_size=size,
            accumulation_steps=options.global_batch_size // size,
            world_size=1,
            rank=0,
        )
        rows = [BatchItem(row, True) for row in range(len(self.data))]
        self.in_order = [rows[start : start + size] for start in range(0, len(rows), size)]
        self.names = [column.name for column in self.data._selection.columns(self.cache.plan)]

    @property
    def positions(self) -> int:
        return self.cache.plan.positions

    def shuffled(self) -> None:
        """An epoch: every row once, in the sampler's order."""
        self.read(self.sampler)

    def sequential(self) -> None:
        self.read(self.in_order)

    def read(self, batches: Iterable[Sequence[BatchItem]]) -> None:
        """Micro-batches, from the file to their tensors."""
        for items in batches:
            self.collator(self.data.__getitems__(items))

    def batches(self) -> Iterator[tuple[int, int]]:
        """Shard and number of every record batch."""
        plan = self.cache.plan
        return ((shard, batch) for shard in range(len(plan.shards)) for batch in range(plan.num_batches(shard)))

    def amplification(self) -> float:
        """Rows in the record batches that an epoch reads, divided by the rows that it asks for."""
        plan, read, asked = self.cache.plan, 0, 0
        for items in self.sampler:
            places = set(self.cache._places(self.data._rows[[item.row for item in items]]))
            asked += len(places)
            read += sum(plan.num_rows(shard, batch) for shard, batch in {place[:2] for place in places})
        return read / asked


def parts(loader: Loader) -> dict[str, Step]:
    """The parts of sequential reading; each starts from the output of the part before, already in memory."""
    plan, reader, selection = loader.cache.plan, loader.cache.batches, loader.data._selection
    table = selection.columns(plan)
    found = [reader.read(shard, batch, loader.names) for shard, batch in loader.batches()]
    rows = [row for columns in found for row in codec.split_rows(columns, table)]
    groups = [rows[items[0].row : items[-1].row + 1] for items in loader.in_order]
    batches: list[MicroBatch] = [loader.data.__getitems__(items) for items in loader.in_order]

    def read() -> None:
        for shard, batch in loader.batches():
            reader._open(shard, tuple(loader.names)).reader.get_batch(batch)

    def crc32() -> None:
        for columns in found:
            for values, offsets in columns.values():
                zlib.crc32(b"" if offsets is None else offsets, zlib.crc32(values))

    def decode() -> None:
        for group in groups:
            codec.decode_scores(group, plan, selection)

    def composed() -> None:
        for batch in batches:
            compose(batch.scores, loader.collator.spec, loader.data.nodes, dtype=np.float32)

    def collate() -> None:
        for batch in batches:
            loader.collator(batch)

    return {
        "read and decompress": read,
        "crc32": crc32,
        "decode": decode,
        "compose": composed,
        "compose and collate": collate,
    }


def floors(loader: Loader) -> dict[str, Step]:
    """The minimum for any reader: decompress the columns that are read, and copy them once."""
    buffers, memory = [], []
    for shard, batch in loader.batches():
        for values, offsets in loader.cache.batches.read(shard, batch, loader.names).values():
            for array in (values, offsets):
                raw = bytes(memoryview(array).cast("B"))
                memory.append(np.frombuffer(raw, np.uint8))
                buffers.append(zstandard.ZstdCompressor(level=3).compress(raw))
    target, context = np.empty(max(map(len, memory)), np.uint8), zstandard.ZstdDecompressor()

    def zstd() -> None:
        for buffer in buffers:
            context.decompress(buffer)

    def copy() -> None:
        for array in memory:
            target[: len(array)] = array

    return {"zstd alone": zstd, "one copy": copy}


def packings(loader: Loader, levels: list[int]) -> tuple[dict[str, float], dict[str, Step]]:
    """Bytes a position of the columns that are read, and their decompression, for zstd levels, lz4 and none."""
    arrays = [
        np.frombuffer(memoryview(array).cast("B"), np.uint8)
        for shard, batch in loader.batches()
        for flat in loader.cache.batches.read(shard, batch, loader.names).values()
        for array in flat
    ]
    context, lz4 = zstandard.ZstdDecompressor(), pa.Codec("lz4")
    sizes = {"none": sum(map(len, arrays)) / loader.positions}
    steps: dict[str, Step] = {}
    for level in levels:
        packer = zstandard.ZstdCompressor(level=level)
        packed = [packer.compress(array.data) for array in arrays]
        sizes[f"zstd {level}"] = sum(map(len, packed)) / loader.positions
        steps[f"zstd {level}"] = lambda packed=packed: [context.decompress(buffer) for buffer in packed]
    squeezed = [(lz4.compress(array, asbytes=True), len(array)) for array in arrays]
    sizes["lz4"] = sum(len(buffer) for buffer, _ in squeezed) / loader.positions
    steps["lz4"] = lambda: [lz4.decompress(buffer, size) for buffer, size in squeezed]
    return sizes, steps


def column_bytes(cache: ShardCache) -> dict[str, float]:
    """Stored bytes a position of every column, zstd level 3."""
    packer, found = zstandard.ZstdCompressor(level=3), {column.name: 0 for column in cache.plan.columns()}
    for shard in range(len(cache.plan.shards)):
        for batch in range(cache.plan.num_batches(shard)):
            for name, flat in cache.batches.read(shard, batch, list(found)).items():
                buffers = [memoryview(part).cast("B") for part in flat if part is not None and len(part)]
                found[name] += sum(len(packer.compress(buffer)) for buffer in buffers)
    return {name: size / cache.plan.positions for name, size in found.items()}


def rates(steps: Mapping[str, tuple[Step, int]], repeats: int) -> dict[str, dict[str, float]]:
    """Positions a second of every step, by the clock and by the processor's time: medians over interleaved rounds."""
    wall: dict[str, list[float]] = {name: [] for name in steps}
    cpu: dict[str, list[float]] = {name: [] for name in steps}
    for step, _ in steps.values():
        step()  # files are opened and pages touched
    for _ in tqdm(range(repeats), desc="measuring", unit="round"):
        for name, (step, _) in steps.items():
            began, began_cpu = time.perf_counter(), time.process_time()
            step()
            wall[name].append(time.perf_counter() - began)
            cpu[name].append(time.process_time() - began_cpu)
    return {
        name: {
            "positions_per_second": positions / statistics.median(wall[name]),
            "positions_per_cpu_second": positions / statistics.median(cpu[name]),
        }
        for name, (_, positions) in steps.items()
    }


def everything(folders: Mapping[int, Path], options: LoadingOptions) -> dict[str, Any]:
    """All measurements; folders: rows of a record batch -> its cache."""
    loaders = {rows: Loader(folder, options) for rows, folder in folders.items()}
    main = loaders[options.rows_per_batch[0]]
    sizes, packing_steps = packings(main, options.levels)
    groups: dict[str, Mapping[str, tuple[Step, int]]] = {
        "whole": {
            f"{order}, {rows}": (step, loader.positions)
            for rows, loader in loaders.items()
            for order, step in (("shuffled", loader.shuffled), ("sequential", loader.sequential))
        },
        "parts": {name: (step, main.positions) for name, step in parts(main).items()},
        "floors": {name: (step, main.positions) for name, step in floors(main).items()},
        "packings": {name: (step, main.positions) for name, step in packing_steps.items()},
    }
    flat = {f"{group}/{name}": step for group, steps in groups.items() for name, step in steps.items()}
    found = rates(flat, options.repeats)
    entries = sum(entry.entries for entry in main.cache.manifest.entries)
    return {
        **{group: {name: found[f"{group}/{name}"] for name in steps} for group, steps in groups.items()},
        "packing_bytes": sizes,
        "caches": {
            rows: {
                "bytes_per_position": sum(e.bytes for e in loader.cache.manifest.entries) / loader.positions,
                "amplification": loader.amplification(),
            }
            for rows, loader in loaders.items()
        },
        "columns": column_bytes(main.cache),
        "facts": {
            "rows": len(main.cache),
            "positions": main.positions,
            "entries_per_position": entries / main.positions,
            "columns_read": len(main.names),
            "columns": len(main.cache.plan.columns()),
        },
    }
