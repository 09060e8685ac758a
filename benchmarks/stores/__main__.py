"""python -m benchmarks.stores: clients of object stores beside the floor of Python's own http.client.

Every client works in a process of its own against a server in memory on this machine, so the figures are those of the
client and of one thread of Python that serves: ratios, not what a network gives. Prints one table, and writes
results.json into --out.
"""

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from benchmarks.machine import processor
from benchmarks.stores.clients import CLIENTS
from benchmarks.stores.work import create, fault, fork, rates
from shards.cli.command import OneLineErrors, run_command

MODULES = {"obstore": "obstore", "s3fs": "s3fs"}
FAULTS = ("status", "cut", "stall", "statusalways", "cutalways", "stallalways")
PATIENT_SECONDS = 30
CONTEXT = multiprocessing.get_context("spawn")


def in_process(work: Callable, *arguments, seconds: float):
    """What `work` puts into a queue, in a process of its own, or `hangs`."""
    queue = CONTEXT.Queue()
    process = CONTEXT.Process(target=work, args=(queue, *arguments))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        return "hangs"
    return queue.get(timeout=5) if process.exitcode == 0 else f"ends with exit code {process.exitcode}"


def dependencies(module: str) -> int | None:
    """How many packages a package needs, and those need, without extras."""
    todo, seen = [module], set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            needed = requires(name) or []
        except PackageNotFoundError:
            continue
        todo += [text.split(";")[0].split("[")[0].strip().rstrip("<>=!~ 0123456789.,*") for text in needed
                 if "extra ==" not in text]  # fmt: skip
    return len(seen) - 1


def measure(name: str, endpoint: str, options) -> dict:
    size = options.megabytes * 1_000_000
    runs = [in_process(rates, name, endpoint, size, options.objects, options.small, seconds=600)
            for _ in range(options.repeats)]  # fmt: skip
    found = {what: median(run[what] for run in runs) for what in runs[0]}
    if name not in MODULES:
        return found
    found["create"] = in_process(create, name, endpoint, seconds=PATIENT_SECONDS)
    found["fork"] = in_process(fork, name, endpoint, seconds=PATIENT_SECONDS)
    for kind in FAULTS:
        found[kind] = in_process(fault, name, endpoint, kind, 1_000_000, seconds=PATIENT_SECONDS)
    found["dependencies"] = dependencies(MODULES[name])
    return found


def table(results: dict[str, dict]) -> str:
    """The results as a markdown table, a column for each client."""
    names = list(results)
    rows = dict.fromkeys(what for found in results.values() for what in found)
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for what in rows:
        cells = [results[name].get(what, "") for name in names]
        text = [f"{cell:,.0f}" if isinstance(cell, (int, float)) else str(cell) for cell in cells]
        lines.append(f"| {what} | {' | '.join(text)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = OneLineErrors(prog="python -m benchmarks.stores", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=32, help="size of a large object")
    parser.add_argument("--objects", type=int, default=8, help="large objects of a run")
    parser.add_argument("--small", type=int, default=300, help="small objects of a run, of 1,000 bytes")
    parser.add_argument("--repeats", type=int, default=3, help="runs of a client; the median is printed")
    parser.add_argument("--out", type=Path, default=Path("runs/stores"), help="folder of results.json")
    options = parser.parse_args(arguments)
    with subprocess.Popen([sys.executable, "-m", "benchmarks.stores.server"], stdout=subprocess.PIPE) as server:
        try:
            endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}"
            os.environ |= {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1"}
            os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
            here = [name for name in CLIENTS if name not in MODULES or find_spec(MODULES[name]) is not None]
            results = {}
            for name in here:
                results[name] = measure(name, endpoint, options)
                print(f"{name}: {results[name]}", file=sys.stderr, flush=True)
        finally:
            server.kill()
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": processor(), "options": vars(options), "results": results}, indent=1, default=str)
    (options.out / "results.json").write_text(text + "\n")
    print(table(results))


if __name__ == "__main__":
    run_command(main)
