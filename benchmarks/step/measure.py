"""Measures time and memory of functions without arguments."""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.step.steps import Steps, Work


def counted(device: torch.device) -> str:
    """Which seconds count as a work's cost: the processor's if one thread does it all, independent of other load."""
    return "processor" if device.type == "cpu" and torch.get_num_threads() == 1 else "clock"


def interleaved(
    works: Mapping[str, Work], clear: Work, *, repeats: int, device: torch.device
) -> dict[str, dict[str, list[float]]]:
    """Seconds of each work, `repeats` times, one after the other in turn, after one turn that is not counted.

    Returns "clock" and "processor" -> name -> seconds; the latter are the process's, in which others do not count.
    """
    clock: dict[str, list[float]] = {name: [] for name in works}
    processor: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            clear()
            used, elapsed = time.process_time(), timed(work, device)
            if turn:
                clock[name].append(elapsed)
                processor[name].append(time.process_time() - used)
    clear()
    return {"clock": clock, "processor": processor}


def timed(work: Work, device: torch.device) -> float:
    """Seconds by the clock."""
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def medians(seconds: Mapping[str, Mapping[str, Sequence[float]]], device: torch.device) -> dict[str, float]:
    """Of what `interleaved` found: the processor's time where that is the cost, else the clock's."""
    return {name: statistics.median(found) for name, found in seconds[counted(device)].items()}


def peak_bytes(work: Work, device: torch.device) -> int:
    """The peak memory of tensors during `work`, above the amount before it.

    On a GPU the allocator's own count. On a CPU the sum of every allocation and release that torch's profiler saw; it
    does not include the scratch memory of matrix libraries.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        _wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    return _peak_of_trace(profiler)


def measured_bytes(steps: Steps, work: Work) -> dict[str, int]:
    """The peak, and the part of it that stays: the gradients of the parameters."""
    steps.clear()
    peak = peak_bytes(work, steps.student.device)
    left = sum(grad.numel() * grad.element_size() for grad in steps.gradients().values())
    steps.clear()
    return {"peak": peak, "gradients": left}


def _peak_of_trace(profiler: profile) -> int:
    """Memory from the events of allocations and releases, in their order; each has the amount allocated after it.

    The total continues from one profile to the next, so the amount before the first event is subtracted.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [event["args"] for event in events if event.get("name") == "[memory]"]
    before = changes[0]["Total Allocated"] - changes[0]["Bytes"]
    return max(change["Total Allocated"] for change in changes) - before


def loader_wait(batches: Iterator[Any], step: Callable[[Any], Any], device: torch.device) -> dict[str, float]:
    """Mean seconds that a step waited for its batch, and that it took; the first batch is not counted."""
    waits, steps = [], []
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        waits.append(time.perf_counter() - started)
        if batch is None:
            break
        steps.append(timed(lambda batch=batch: step(batch), device))
    return {"wait_seconds": statistics.mean(waits[1:-1]), "step_seconds": statistics.mean(steps[1:])}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
