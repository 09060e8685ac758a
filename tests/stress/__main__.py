"""python -m stress [CAMPAIGN ...]: runs campaigns in bounded time slices, goes on where it stopped, prints counts.

Exit code 0 only if every case held. `--planted` shows instead that each campaign finds the defects planted for it.
"""

import argparse
import importlib
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from stress.campaign import Campaign
from stress.slices import State, cases_until_caught, read_state, run_slice

CAMPAIGNS = {  # name -> "module:class"
    "kills": "stress.kills.campaign:Kills",
    "faults": "stress.faults.campaign:Faults",
    "flips": "stress.flips.campaign:Flips",
    "content": "stress.content:Content",
    "mutants": "stress.mutants.campaign:Mutants",
    "locks": "stress.locks.campaign:Locks",
    "resumes": "stress.resumes.campaign:Resumes",
    "loaders": "stress.resumes.loaders:Loaders",
}
SAVE_SECONDS = 20.0


def load(name: str) -> type[Campaign]:
    module, _, kind = CAMPAIGNS[name].partition(":")
    found: type[Campaign] = getattr(importlib.import_module(module), kind)
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stress", description=__doc__, allow_abbrev=False)
    parser.add_argument("campaigns", nargs="*", metavar="CAMPAIGN", help=f"of {', '.join(CAMPAIGNS)}; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--seconds", type=float, default=600, help="the most time for each campaign; the next call goes on"
    )
    parser.add_argument("--state", type=Path, default=Path("runs/stress"), help="folder of the counts so far")
    parser.add_argument("--table", action="store_true", help="run nothing: print the counts so far as a Markdown table")
    parser.add_argument("--case", type=int, help="run this case alone, and count nothing")
    parser.add_argument(
        "--planted", action="store_true", help="plant each defect, and say after how many cases it is found"
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.campaigns) - set(CAMPAIGNS):
        parser.error(f"expected campaigns of {', '.join(CAMPAIGNS)}, got {', '.join(sorted(unknown))}")
    return options


class Saver:
    """Writes the state every so often, and a line of progress with an estimate."""

    def __init__(self, path: Path, unit: str) -> None:
        self.path, self.unit, self.last = path, unit, time.monotonic()

    def __call__(self, state: State) -> None:
        if time.monotonic() - self.last > SAVE_SECONDS:
            self.last = time.monotonic()
            state.write(self.path)
            rest = state.seconds / state.done * (state.cases - state.done)
            print(f"{line(state, self.unit)}, about {rest / 60:.0f} min left", flush=True)


def line(state: State, unit: str) -> str:
    bad = f"{state.total('missed')} missed, {state.total('hung')} hung"
    return f"{state.campaign}: {state.done:,} of {state.cases:,} {unit}, {state.total('held'):,} held, {bad}"


def table(state: State, unit: str) -> str:
    """One campaign: its counts by kind, and the lines of cases that did not hold."""
    rows = [line(state, unit)]
    rows += [f"  {count:>9,}  {name}" for name, count in sorted(state.counts.items())]
    rows += [f"  --case {number}: {text}" for number, text in state.failures]
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    options.state.mkdir(parents=True, exist_ok=True)
    if options.table:
        print(markdown(options.state, options.campaigns or list(CAMPAIGNS)))
        return 0
    bad = 0
    for name in options.campaigns or CAMPAIGNS:
        kind, ground = load(name), Path(tempfile.mkdtemp(prefix=f"stress-{name}-"))
        try:
            campaign = kind(ground, options.seed)
            if options.case is not None:
                print(campaign.case(options.case))
            elif options.planted:
                bad += planted(campaign, options)
            else:
                bad += slice_of(campaign, options)
        finally:
            shutil.rmtree(ground)
    return 1 if bad else 0


def slice_of(campaign: Campaign, options: argparse.Namespace) -> int:
    path = options.state / f"{campaign.name}.json"
    state = read_state(path, campaign.name, options.seed, len(campaign))
    run_slice(campaign, state, options.seconds, Saver(path, campaign.unit))
    state.write(path)
    print(table(state, campaign.unit), flush=True)
    return state.total("missed") + state.total("hung")


def planted(campaign: Campaign, options: argparse.Namespace) -> int:
    """Prints a line for each planted defect; returns how many were not found."""
    found = {}
    for defect in campaign.defects:
        count = cases_until_caught(campaign, defect, limit=len(campaign), seconds=options.seconds)
        found[defect] = count
        told = "NOT found" if count is None else f"found after {count:,} {campaign.unit}"
        print(f"{campaign.name}: {defect}: {told}", flush=True)
    (options.state / f"{campaign.name}.planted.json").write_text(json.dumps(found, indent=1) + "\n")
    return sum(count is None for count in found.values())


def markdown(folder: Path, campaigns: list[str]) -> str:
    """The counts in a folder: a row for each campaign, and one for each planted defect."""
    rows = ["| campaign | of | run | held | missed | hung | minutes |", "|---|---|---|---|---|---|---|"]
    defects = ["| campaign | planted defect | found after |", "|---|---|---|"]
    for name in campaigns:
        unit = load(name).unit
        if (path := folder / f"{name}.json").exists():
            state = State(**json.loads(path.read_text()))
            totals = " | ".join(f"{state.total(verdict):,}" for verdict in ("held", "missed", "hung"))
            size = f"{state.cases:,} {unit} | {state.done:,}"
            rows.append(f"| {name} | {size} | {totals} | {state.seconds / 60:.0f} |")
        if (path := folder / f"{name}.planted.json").exists():
            for defect, count in json.loads(path.read_text()).items():
                defects.append(f"| {name} | {defect} | {'never' if count is None else f'{count:,} {unit}'} |")
    return "\n".join([*rows, "", *defects])


if __name__ == "__main__":
    sys.exit(main())
