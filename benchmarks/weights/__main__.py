"""python -m benchmarks.weights: reward against KL with and without limits on lambda_t, for bodies of several dtypes.

The known-reward task needs nothing; trios are measured if they are given. Figures are written when a seed is done with
a dtype, and the same command continues with what is missing. Writes results.json and weights.md into --out; with --page
docs/weights.md it also writes the page there.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.alignment.jobs import prepare
from benchmarks.command import parse
from benchmarks.weights import known, trios
from benchmarks.weights.options import WeightsOptions
from benchmarks.weights.report import page
from benchmarks.weights.rules import Rule
from shards.cli.command import run_command
from shards.errors import OptionError

Work = tuple[tuple[str, ...], Callable[[], dict[str, Any]]]


def run(options: WeightsOptions, command: str) -> dict[str, Any]:
    """Everything that results.json lacks. Raises AlignDistilError."""
    file = Path(options.out) / "results.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    results = read(file, {"known": options.known_identity(), "trios": options.trio_identity()})
    results["command"] = command
    for path, work in all_work(options):
        place = results
        for name in path[:-1]:
            place = place.setdefault(name, {})
        if path[-1] not in place:
            place[path[-1]] = work()
            temporary = file.with_suffix(".tmp")
            temporary.write_text(json.dumps(results, indent=1) + "\n")
            temporary.replace(file)
    return results


def all_work(options: WeightsOptions) -> Iterator[Work]:
    """Where a part's figures are kept in the results, and how they are made."""
    out = Path(options.out)
    for seed in options.seeds:
        for dtype in options.dtypes:
            path = ("known", dtype, str(seed))
            yield path, partial(known.run_part, out / f"known-{seed}", seed, dtype, options)
    for seed in options.trio_seeds:
        for name, models in options.folders.items():
            for gain in options.trio_gains:
                work = partial(trios.run_part, out / f"trio-{name}", models, gain, seed)
                for dtype in options.dtypes:
                    wanted = [(rule, options.trio_rate) for rule in options.rules_for(dtype)]
                    yield ("trios", name, f"{gain:g}", dtype, str(seed)), partial(work, dtype, wanted, options)
                    more = [(Rule(), rate) for rate in options.trio_more_rates]
                    yield ("more_rates", name, f"{gain:g}", dtype, str(seed)), partial(work, dtype, more, options)


def read(file: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The earlier results. Raises OptionError if they have other settings."""
    if not file.exists():
        return {"settings": dict(settings), "known": {}, "trios": {}, "more_rates": {}}
    found = json.loads(file.read_text())
    for part, asked in settings.items():
        for name, value in asked.items():
            if found["settings"][part][name] != value:
                raise OptionError(
                    f"{file}: expected results with {name} = {value}, found {found['settings'][part][name]}; give "
                    "another --out"
                )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    options, command = parse(WeightsOptions, "benchmarks.weights", __doc__, arguments)
    prepare()
    results = run(options, command)
    for path in [Path(options.out) / "weights.md", *([Path(options.page)] if options.page else [])]:
        path.write_text(page(results))
    print(f"{options.out}: results.json and weights.md are written")


if __name__ == "__main__":
    run_command(main, interrupted="interrupted; finished parts stay, and the same command continues from there")
