"""python -m benchmarks.weights: reward against KL with and without limits on lambda_t, for bodies of several dtypes.

The known-reward task needs nothing; trios are measured if they are given. The figures of a seed are written when it is
done, and the same command continues with the missing ones. Writes results.json and weights.md into --out; with --page
docs/weights.md it also writes the page there.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.alignment.__main__ import _write
from benchmarks.alignment.jobs import prepare
from benchmarks.command import parse
from benchmarks.weights.known import run_part
from benchmarks.weights.options import WeightsOptions
from shards.cli.command import run_command


def run(options: WeightsOptions, command: str) -> dict[str, Any]:
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    file = out / "results.json"
    results: dict[str, Any] = {"command": command, "known_settings": options.known_identity(), "known": {}}
    import json

    if file.exists():
        results |= json.loads(file.read_text())
    for seed in options.seeds:
        for dtype in options.dtypes:
            done = results["known"].setdefault(dtype, {})
            if str(seed) not in done:
                done[str(seed)] = run_part(out / f"known-{seed}", seed, dtype, options)
                _write(file, results)
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    options, command = parse(WeightsOptions, "benchmarks.weights", __doc__, arguments)
    prepare()
    run(options, command)


if __name__ == "__main__":
    run_command(main)
