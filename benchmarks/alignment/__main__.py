"""python -m benchmarks.alignment: true reward against KL to the reference, for DPO and for students of every teacher.

Everything is made on the spot. A seed's figures are written when it is done: the same command goes on with the seeds
that are missing. results.json, results.md and pictures come to lie in --out; with --page docs/results.md the page and
its pictures are written there too.
"""

import json
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.alignment.experiment import run_mild, run_plenty, run_seed, tune, tune_mild
from benchmarks.alignment.options import TUNING_SEED, AlignmentOptions
from benchmarks.command import parse, quiet
from benchmarks.plots import require_matplotlib
from shards.command import run_command
from shards.errors import OptionError


def run(options: AlignmentOptions, command: str) -> dict[str, Any]:
    """Learning rates, then every seed that results.json lacks. Raises AlignDistilError."""
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    file = out / "results.json"
    results = _earlier(file, options) or {"settings": options.identity()}
    results |= {"command": command, "seeds": results.get("seeds", {}), "mild": results.get("mild", {})}

    def keep(part: dict[str, Any], name: str, work: Callable[[], Any], seed: int) -> None:
        """Do what is not done yet, and write it down; the models and caches of the seed are removed, as are those that
        a run that was killed has left."""
        if name not in part:
            shutil.rmtree(out / f"seed-{seed}", ignore_errors=True)
            part[name] = work()
            _write(file, results)
            shutil.rmtree(out / f"seed-{seed}", ignore_errors=True)

    keep(results, "tuning", lambda: tune(options, TUNING_SEED), TUNING_SEED)
    rates = results["tuning"]["rates"]
    for seed in options.seeds:
        keep(results["seeds"], str(seed), lambda: run_seed(seed, options, rates), seed)  # noqa: B023 - called at once
    keep(results, "mild_tuning", lambda: tune_mild(options, TUNING_SEED, rates), TUNING_SEED)
    mild_rates = results["mild_tuning"]["rates"]
    for seed in options.seeds:
        keep(results["mild"], str(seed), lambda: run_mild(seed, options, rates, mild_rates), seed)  # noqa: B023
    keep(results, "plenty", lambda: run_plenty(TUNING_SEED, options), TUNING_SEED)
    return results


def write(results: dict[str, Any], page_path: Path) -> None:
    """The page, and its pictures in a folder of its name beside it."""
    from benchmarks.alignment.plot import draw_frontiers, draw_paths
    from benchmarks.alignment.report import page

    folder = page_path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    draw_frontiers(results, folder / "frontier.svg")
    draw_paths(results, folder / "steps.svg")
    page_path.write_text(page(results, folder.name))


def _earlier(file: Path, options: AlignmentOptions) -> dict[str, Any] | None:
    """What a run before this one found. Raises OptionError where it had other settings."""
    if not file.exists():
        return None
    found = json.loads(file.read_text())
    for name, value in options.identity().items():
        if found["settings"].get(name) != value:
            raise OptionError(
                f"{file}: expected results with {name} = {value}, found {found['settings'].get(name)}; "
                "give another --out"
            )
    return found


def _write(file: Path, results: dict[str, Any]) -> None:
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    temporary.replace(file)


def prepare() -> None:
    """One thread, which is as fast for models this small; nothing on the terminal but what this command says."""
    quiet()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # what TRL and transformers call by its old name, a user cannot mend
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)


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
    run_command(main, interrupted="interrupted; finished seeds stay, and the same command goes on from there")
