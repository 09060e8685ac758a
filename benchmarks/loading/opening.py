"""python -m benchmarks.loading.opening DIR: time to open a cache, and the memory that it then holds, as JSON.

Opening ends when a student can ask for its first rows: the manifest is read, every shard was found, the index is read,
and the first epoch is shuffled. It runs in its own process, because memory that was freed before would be reused.
"""

import json
import sys
import time
from pathlib import Path

from student.data.order import GlobalBatchSampler
from student.data.responses import CachedResponses


def resident_bytes(field: str) -> int:
    """VmRSS, the memory of the process, or VmHWM, its peak (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def opened(folder: str) -> dict[str, float]:
    """Seconds, and the bytes held now and at the peak, per row."""
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    began, began_cpu = time.perf_counter(), time.process_time()
    data = CachedResponses([folder], train_on="both")
    sampler = GlobalBatchSampler(data.lengths, seed=0, micro_batch_size=8, accumulation_steps=16, world_size=1, rank=0)
    batches = iter(sampler)
    next(batches)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
    held, peak = resident_bytes("VmRSS") - before, resident_bytes("VmHWM") - before
    found = {"seconds": seconds, "cpu_seconds": cpu_seconds}
    return found | {"bytes_per_row": held / len(data), "peak_bytes_per_row": peak / len(data)}


def main() -> None:
    print(json.dumps(opened(sys.argv[1])))


if __name__ == "__main__":
    main()
