"""python -m benchmarks.memory: the memory of readers over an epoch of a cache that is larger than what they may have.

A cache is read in shuffled order by ShardCache, and by the student's loader without and with workers, each in a process
of its own. After a tenth of the epoch no process may add more than --bound_mib to its private memory (RLIMIT_DATA).
Reported: resident anonymous memory of the process and of its workers after 10%, 50% and 100% of the micro-batches.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

from benchmarks.command import parse
from benchmarks.loading.many import cut, repeated_responses
from benchmarks.loading.options import LoadingOptions
from benchmarks.loading.synthetic import index_of, make_plan, write_planned
from benchmarks.machine import processor, versions
from shards import ShardCache, TeacherSpec
from shards.cli.command import flag, require_at_least, run_command
from shards.format.encoding.selection import Selection
from shards.format.writer import write_index
from shards.places.room import Room
from student.data.collate import Collator
from student.data.loading import Loading
from student.data.responses import CachedResponses

SHARES = (0.1, 0.5, 1.0)
MIB = 2**20


@dataclass(kw_only=True)
class Options:
    """Flags of the benchmark. Raises OptionError."""

    shards: str | None = flag(None, "folder or URL to read in this process; default: a cache that is made in --out")
    readers: list[str] = flag(["cache", "loader", "workers"], "ShardCache; the student's loader; the same with workers")
    num_shards: int = flag(300, "shards of the cache that is made")
    rows: int = flag(4800, "its rows, of 40 positions with 512 kept tokens, 8 KB each when decoded")
    bound_mib: int = flag(64, "private memory that a process may add after a tenth of the epoch")
    cache_dir: str | None = flag(None, "as in student.train, for a URL")
    cache_limit: str | None = flag(None, "as in student.train, for a URL")
    out: str = flag("runs/memory", "folder for the cache and the results")

    def __post_init__(self) -> None:
        require_at_least(self, 1, ["num_shards", "rows", "bound_mib"])


def make(folder: Path, rows: int, num_shards: int) -> None:
    """A cache whose rows are large for what they take to make."""
    sizes = LoadingOptions(length=40, prompt=8, top_k=500, max_top_k=512, vocabulary=2000, values="float32", rows=rows)
    responses = repeated_responses(sizes, rows)
    folder.mkdir(parents=True)
    plan = make_plan(sizes, cut(responses, num_shards), 1, write_index(folder, index_of(responses)))
    write_planned(folder, plan, responses)


def batches(options: Options, reader: str) -> tuple[int, Iterator[Any]]:
    """How many micro-batches of a row an epoch has, and these, in shuffled order."""
    assert options.shards is not None
    room = Room.of(options.cache_dir, options.cache_limit)
    data = CachedResponses([options.shards], train_on="both", room=room).for_teacher(TeacherSpec())
    args = SimpleNamespace(
        seed=0,
        data_seed=None,
        gradient_accumulation_steps=16,
        world_size=1,
        process_index=0,
        local_process_index=0,
        shuffle_window=None if options.cache_limit is None else 8,
        dataloader_num_workers=2 if reader == "workers" else 0,
        dataloader_pin_memory=False,
        dataloader_persistent_workers=False,
        dataloader_prefetch_factor=None,
    )
    loading = Loading(args, data, None)
    sampler = loading.sampler(data, 1, shuffle=True)
    if reader == "cache":
        cache: ShardCache = data.caches[0]
        everything = Selection.everything(cache.plan)
        return len(sampler), (cache.read_joined([item.row for item in items], everything) for items in sampler)
    collator = Collator(spec=TeacherSpec(), nodes=data.nodes, reduction="sequence", pad_token_id=0)
    return len(sampler), iter(loading.loader(data, sampler, collator))


def processes() -> list[int]:
    """This process and its workers."""
    here = psutil.Process()
    return [here.pid, *(process.pid for process in here.children(recursive=True))]


def kib(pid: int, file: str, name: str) -> int:
    """A figure of a file under /proc/PID."""
    return int(Path(f"/proc/{pid}/{file}").read_text().split(f"{name}:")[1].split()[0])


def bound(mib: int) -> None:
    """From now on no process may add more than this to its private memory."""
    for pid in processes():
        limit = kib(pid, "status", "VmData") * 1024 + mib * MIB
        resource.prlimit(pid, resource.RLIMIT_DATA, (limit, limit))


def anonymous_mib() -> float:
    return sum(kib(pid, "smaps_rollup", "Anonymous") for pid in processes()) / 1024


def measure(options: Options, reader: str) -> dict[str, Any]:
    """Read an epoch in this process."""
    count, epoch = batches(options, reader)
    at = {max(1, round(share * count)): share for share in SHARES}
    found = {}
    for number, _ in enumerate(epoch, start=1):
        if number in at:
            if not found:
                bound(options.bound_mib)
            found[f"{at[number]:.0%}"] = round(anonymous_mib(), 1)
    return {"reader": reader, "micro_batches": count, "anonymous_mib": found}


def all_readers(options: Options) -> list[dict[str, Any]]:
    folder = Path(options.out) / "cache"
    make(folder, options.rows, options.num_shards)
    rows = []
    for reader in options.readers:
        flags = ["--shards", str(folder), "--readers", reader, "--bound_mib", str(options.bound_mib)]
        done = subprocess.run([sys.executable, "-m", "benchmarks.memory", *flags], check=True, stdout=subprocess.PIPE)
        rows += json.loads(done.stdout)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| reader | micro-batches | 10% | 50% | 100% |", "|---|--:|--:|--:|--:|"]
    for row in rows:
        cells = " | ".join(f"{mib:.0f} MiB" for mib in row["anonymous_mib"].values())
        lines.append(f"| {row['reader']} | {row['micro_batches']:,} | {cells} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    options, command = parse(Options, "benchmarks.memory", __doc__, arguments)
    if options.shards is not None:
        print(json.dumps([measure(options, reader) for reader in options.readers]))
        return
    rows = all_readers(options)
    size = sum(file.stat().st_size for file in (Path(options.out) / "cache").iterdir()) / MIB
    text = f"`{command}`; {processor()}; {versions(['pyarrow', 'torch'])}; {size:.0f} MiB\n\n{table(rows)}"
    (Path(options.out) / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    run_command(main)
