"""python -m benchmarks.loading.opening DIR: how long a cache takes to open, and the memory that it holds then, as JSON.

Opening ends where a student can ask for its first rows: the manifest is read, every shard was looked for, the index is
read, and the first epoch is shuffled. A process of its own, since memory that was freed before would be used again.
"""

import json
import sys
import time
from pathlib import Path

from student.data import CachedResponses, GlobalBatchSampler


def resident_bytes(field: str) -> int:
    """VmRSS, what the process holds of memory, or VmHWM, its peak (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def opened(folder: str) -> dict[str, float]:
    """Seconds, and the bytes that are held, and were at the most, for each row."""
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
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
