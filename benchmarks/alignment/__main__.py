"""python -m benchmarks.alignment: true reward against KL to the reference, for DPO and for students of every teacher.

Everything is made on the spot. The figures of a seed are written when it is done: the same command continues with the
missing seeds. It writes results.json, results.md and pictures into --out; with --page docs/results.md it also writes
the page and its pictures there.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.alignment import real
from benchmarks.alignment.experiment import run_seed, tune
from benchmarks.alignment.jobs import Job, each, prepare
from benchmarks.alignment.options import TUNING_SEED, AlignmentOptions
from benchmarks.command import parse
from benchmarks.plots import require_matplotlib
from shards.cli.command import run_command
from shards.errors import OptionError


def run(options: AlignmentOptions, command: str) -> dict[str, Any]:
    """Make the choices, then run every seed that results.json lacks. Raises AlignDistilError."""
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    file = out / "results.json"
    results: dict[str, Any] = {"settings": options.identity()} | (_earlier(file, options) or {})
    results["command"] = command
    results |= {part: results.get(part, {}) for part in ("tuning", "few_tuning", "seeds", "few_seeds")}

    def keep(jobs: Iterable[Job]) -> None:
        """Do the jobs that are not done yet, and record each when it is done."""
        todo = [job for job in jobs if str(job.seed) not in results[job.part]]
        for job, found in each(todo, options.workers):
            results[job.part][str(job.seed)] = found
            _write(file, results)

    keep(
        Job(part, TUNING_SEED, partial(tune, out / part, TUNING_SEED, options, few=few))
        for part, few in (("tuning", False), ("few_tuning", True))
    )
    keep(
        Job(part, seed, partial(run_seed, out / f"{part}-{seed}", seed, options, _choices(results, few), few=few))
        for part, few in (("seeds", False), ("few_seeds", True))
        for seed in options.seeds
    )
    if options.models:
        _require_same(results.setdefault("real_settings", options.real_identity()), options.real_identity(), file)
        results |= {part: results.get(part, {}) for part in ("real_trio", "real_tuning", "real_seeds")}
        keep(
            Job(part, TUNING_SEED, partial(work, out / part, options))
            for part, work in (("real_trio", real.trio_figures), ("real_tuning", real.tune))
        )
        choices = results["real_tuning"][str(TUNING_SEED)]
        keep(
            Job("real_seeds", seed, partial(real.run_seed, out / f"real-{seed}", seed, options, choices))
            for seed in options.real_seeds
        )
    return results


def _choices(results: dict[str, Any], few: bool) -> dict[str, Any]:
    return results["few_tuning" if few else "tuning"][str(TUNING_SEED)]


def write(results: dict[str, Any], page_path: Path) -> None:
    """Write the page, and its pictures into a folder of the same name beside it."""
    from benchmarks.alignment.plot import draw_frontiers, draw_paths
    from benchmarks.alignment.report import page

    folder = page_path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    draw_frontiers(results, folder / "frontier.svg")
    draw_paths(results, folder / "steps.svg")
    page_path.write_text(page(results, folder.name))


def _earlier(file: Path, options: AlignmentOptions) -> dict[str, Any] | None:
    """The results of an earlier run. Raises OptionError if it had other settings."""
    if not file.exists():
        return None
    found = json.loads(file.read_text())
    _require_same(found["settings"], options.identity(), file)
    return found


def _require_same(found: Mapping[str, Any], asked: Mapping[str, Any], file: Path) -> None:
    for name, value in asked.items():
        if found.get(name) != value:
            raise OptionError(
                f"{file}: expected results with {name} = {value}, found {found.get(name)}; give another --out"
            )


def _write(file: Path, results: dict[str, Any]) -> None:
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    temporary.replace(file)


def main(arguments: Sequence[str] | None = None) -> None:
    options, command = parse(AlignmentOptions, "benchmarks.alignment", __doc__, arguments)
    require_matplotlib()
    prepare()
    results = run(options, command)
    write(results, Path(options.out) / "results.md")
    if options.page is not None:
        write(results, Path(options.page))
    print(f"{options.out}: results.json, results.md and pictures are written")


if __name__ == "__main__":
    run_command(main, interrupted="interrupted; finished seeds stay, and the same command continues from there")
