"""python -m benchmarks: runs the benchmarks one after the other and prints their headlines as one table.

Each runs in its own process, `python -m benchmarks.NAME`, and writes its pages, results.json and log into --out/NAME.
README.md beside this file says what each measures, and compared with what.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.command import parse
from benchmarks.headlines import HEADLINES, table
from benchmarks.machine import processor, versions
from shards.cli.command import flag, require_at_least, run_command
from shards.errors import AlignDistilError, OptionError

VERSIONS = ("torch", "transformers", "numpy", "pyarrow", "zstandard")
QUICK = {
    "gpu": "--dry_run",
    "loading": "--rows 64 --repeats 1 --rows_per_batch 1 4 --levels 3 --micro_batch_size 4 --global_batch_size 16 "
    "--shards 2 20 --shard_rows 20 --index_rows 1000 100000",
    "tokenizing": "--rows 50 200 --words 20 --repeats 1 --built_rows 10",
    "codec": "--rows 6 --positions 40 --synthetic_rows 2 --repeats 1",
    "building": "--hidden_size 128 --layers 2 --heads 4 --vocabulary 4000 --pairs 2 --repeats 2",
    "cluster": "--pairs 20 --words 10 --tokens_per_shard 50 --kills 1",
    "stores": "--megabytes 1 --objects 1 --small 5 --repeats 1",
    "scaling": "--measure paper",
    "step": "--hidden_size 128 --layers 2 --heads 4 --vocabulary 4000 --rows 2 --sequence_length 128 --repeats 2 "
    "--loader_batches 3",
    "fidelity": "--rows 6 --positions 60 --frontier_positions 30 --parameter_rows 1 --student_rows 1 "
    "--pairs 40 --online_steps 0",
    "online": "--steps 4 --measure_every 2 --rows 32 --held_out_rows 4",
    "alignment": "--seeds 0 --texts 256 --pairs 288 --few_pairs 288 --held_out_pairs 20 --samples_per_prompt 1 "
    "--learning_rates 3e-4 --hidden_size 16",
    "weights": "--seeds 0 --texts 256 --pairs 288 --samples_per_prompt 1 --hidden_size 16 --known_gains 1 "
    "--caps 1 --half_caps 1",
}
"""Flags with which a benchmark runs in a minute or two: they test that it runs; its figures mean nothing."""


@dataclass(kw_only=True)
class Options:
    """Flags of the runner. Raises OptionError."""

    only: list[str] = flag(list(HEADLINES), "benchmarks to run")
    quick: bool = flag(False, "small sizes: only to test that they run")
    threads: int = flag(1, "OMP_NUM_THREADS of each")
    out: str = flag("runs/benchmarks", "folder for pages, results and logs")

    def __post_init__(self) -> None:
        if wrong := [name for name in self.only if name not in HEADLINES]:
            raise OptionError(f"only: expected names of {', '.join(HEADLINES)}, got {wrong[0]}")
        require_at_least(self, 1, ["threads"])


def run_one(name: str, options: Options) -> dict[str, Any]:
    """Run a benchmark and read its results. Raises AlignDistilError, naming its log, if it fails."""
    out = Path(options.out) / name
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", f"benchmarks.{name}", "--out", str(out)]
    command += QUICK[name].split() if options.quick else []
    log = out / "log.txt"
    with log.open("w") as sink:
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
        code = subprocess.run(command, stdout=sink, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    if code:
        last = log.read_text().strip().splitlines()[-1:] or ["no output"]
        raise AlignDistilError(f"benchmarks.{name}: expected exit code 0, got {code}; {log} ends with: {last[0]}")
    return json.loads((out / "results.json").read_text())


def main(arguments: Sequence[str] | None = None) -> None:
    options, _ = parse(Options, "benchmarks", __doc__, arguments)
    found = {}
    for i, name in enumerate(options.only):
        print(f"{i + 1} of {len(options.only)}: benchmarks.{name}, log in {options.out}/{name}/log.txt", flush=True)
        started = time.perf_counter()
        found[name] = HEADLINES[name](run_one(name, options))
        print(f"   {time.perf_counter() - started:.0f} s", flush=True)
    text = f"{processor()}, {options.threads} thread(s) of {os.cpu_count()}; {versions(VERSIONS)}\n\n{table(found)}\n"
    (Path(options.out) / "summary.md").write_text(text)
    print(f"\n{text}")


if __name__ == "__main__":
    run_command(main)
