"""python -m benchmarks.gpu: what build and student cost on one GPU, in at most eight minutes.

Random weights at known shapes. Writes a file of cells for every part as soon as they are known, then results.json and
gpu.md, into --out. Without a GPU its cells stay empty; with --dry_run every part runs in tiny shapes on the CPU.
"""

import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import parse, quiet
from benchmarks.gpu.options import GpuOptions
from benchmarks.gpu.parts import NO_GPU, PARTS, limits, run_part, skipped
from benchmarks.gpu.report import page
from benchmarks.gpu.shapes import DEFAULT_CARD, SHAPES, VOCABULARY, card_of, floor_table
from benchmarks.machine import processor, versions
from shards.cli.command import run_command
from shards.errors import AlignDistilError, OptionError

RESULTS_FILE, REPORT_FILE = "results.json", "gpu.md"
VERSIONS = ("torch", "transformers", "numpy", "pyarrow")
OPTIONAL = ("triton", "liger-kernel", "peft", "accelerate")
ON_A_CPU = ("tests",)
"""Parts that have something to show where there is no GPU."""


def run(options: GpuOptions, command: str) -> dict[str, Any]:
    """All parts, one after the other; results.json is written after each, and its content returned."""
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    results = {"settings": settings(options, command), "parts": found, "floor": floor()}
    # Triton is imported by now, and decides then whether it interprets: a process of its own decides anew
    apart = not options.dry_run or os.environ.get("TRITON_INTERPRET") != "1"
    os.environ |= {"TRITON_INTERPRET": "1"} if options.dry_run else {}
    own, spare = limits({name: PARTS[name].share for name in options.parts}, options.seconds), 0.0
    for name in options.parts:
        if results["settings"]["gpu"] is None and not options.dry_run and name not in ON_A_CPU:
            found[name] = skipped(name, PARTS[name], options, NO_GPU)
        else:
            limit = own[name] + spare
            print(f"{name}: at most {limit:.0f} s, log in {out}/{name}.log", flush=True)
            found[name] = run_part(name, PARTS[name], options, limit, apart=apart)
            spare = limit - found[name]["seconds"]
            print(f"   {found[name]['state']}, {found[name]['seconds']:.0f} s", flush=True)
        write(results, options)
    return results


def floor() -> dict[str, Any]:
    """The arithmetic of the floor, for this machine's card or for the one that is usual."""
    card = (card_of(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else None) or DEFAULT_CARD
    return {"card": card.name, "size": "1.5B", "costs": floor_table(SHAPES["1.5B"], VOCABULARY, card)}


def settings(options: GpuOptions, command: str) -> dict[str, Any]:
    """The command and the machine. gpu: its name, or None."""
    gpu = None
    if torch.cuda.is_available() and not options.dry_run:
        gpu = {
            "name": torch.cuda.get_device_name(0),
            "bytes": torch.cuda.get_device_properties(0).total_memory,
            "cuda": torch.version.cuda,
        }
    return {
        "command": command,
        "dry_run": options.dry_run,
        "gpu": gpu,
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "versions": ", ".join([versions(VERSIONS), *(f"{name} {_version(name)}" for name in OPTIONAL)]),
        "seconds": options.seconds,
        "repeats": options.repeats,
        "trio": options.trio is not None,
    }


def write(results: Mapping[str, Any], options: GpuOptions) -> None:
    out = Path(options.out)
    (out / RESULTS_FILE).write_text(json.dumps(results, indent=1) + "\n")
    text = page(results)
    for path in (out / REPORT_FILE, *([Path(options.page)] if options.page else [])):
        path.write_text(text)


def read(options: GpuOptions) -> dict[str, Any]:
    """Raises OptionError if nothing was measured into --out."""
    path = Path(options.out) / RESULTS_FILE
    if not path.is_file():
        raise OptionError(f"report: expected {path}, which a run without --report writes")
    results = json.loads(path.read_text())
    if results["settings"]["dry_run"] and options.page:
        raise OptionError(f"page: expected a run without --dry_run in {path}")
    return results


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def main(arguments: Sequence[str] | None = None) -> None:
    options, command = parse(GpuOptions, "benchmarks.gpu", __doc__, arguments)
    quiet()
    results = read(options) if options.report else run(options, command)
    write(results, options)
    print(f"\n{page(results)}\n{options.out}: {RESULTS_FILE} and {REPORT_FILE} are written")
    failed = [f"{name} {part['state']}" for name, part in results["parts"].items() if "failed" in part["state"]]
    if failed and not options.report:
        raise AlignDistilError(f"expected every part to run, got {'; '.join(failed)}")


if __name__ == "__main__":
    run_command(main)
