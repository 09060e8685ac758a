"""The tests marked `gpu`, in a process of their own: one cell for every test and device.

Tests name the device in their parameters, so that their bodies also run on a CPU, in the ordinary suite. On a machine
without a GPU those are run here, and the GPU's cells stay empty.
"""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import torch

from benchmarks.gpu.options import GpuOptions
from benchmarks.gpu.parts import Cells

TESTS = Path(__file__).parents[2] / "tests"
LINE = re.compile(r"^(?:tests/)?(\w+\.py)::(\w+)(?:\[(\S+)\])? (PASSED|FAILED|ERROR|SKIPPED|XFAIL)", re.MULTILINE)
TEST = re.compile(r"""^@pytest\.mark\.parametrize\("device", DEVICES\).*?^def (test_\w+)""", re.MULTILINE | re.DOTALL)
"""A test on both devices: a list DEVICES names them, and the GPU has the marker."""
ALL_TESTS = "all of them"


def files() -> list[Path]:
    """The files with tests of a GPU."""
    return [path for path in sorted(TESTS.glob("test_*.py")) if TEST.search(path.read_text())]


def planned(options: GpuOptions) -> list[str]:
    found = [f"{path.name}: {name}" for path in files() for name in dict.fromkeys(TEST.findall(path.read_text()))]
    return [*found, ALL_TESTS]


def measure(cells: Cells, options: GpuOptions) -> None:
    """Run them; what ran before the limit counts. A failed test fails the part."""
    gpu = torch.cuda.is_available() and not options.dry_run
    # a warning of another version of a library is no failure here
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-W", "default", *map(str, files())]
    command += ["-m", "gpu"] if gpu else []
    command += ["--collect-only", "-q"] if options.dry_run else []
    log = Path(options.out) / "pytest.log"
    late = False
    with log.open("w") as sink:
        try:
            subprocess.run(
                command, stdout=sink, stderr=subprocess.STDOUT, cwd=TESTS.parent, timeout=cells.left, check=False
            )
        except subprocess.TimeoutExpired:
            late = True
    text = log.read_text()
    if options.dry_run:
        cells.put(ALL_TESTS, {"cpu": f"{len(re.findall(r'::test_', text))} found"})
        return
    fill(cells, outcomes(text))
    if late:
        cells.empty(ALL_TESTS, f"out of time after {cells.limit:.0f} s; see {log}")
    elif not LINE.search(text):
        cells.empty(ALL_TESTS, f"failed: pytest ran no test; see {log}")


def outcomes(text: str) -> dict[str, dict[str, Counter[str]]]:
    """Row -> device -> how many of its cases passed, failed, or were skipped; from the output of `pytest -v`."""
    found: dict[str, dict[str, Counter[str]]] = {}
    for file, name, case, outcome in LINE.findall(text):
        device = "gpu" if "cuda" in case else "cpu"
        for row in (f"{file}: {name}", ALL_TESTS):
            found.setdefault(row, {}).setdefault(device, Counter())[outcome.lower()] += 1
    return found


def fill(cells: Cells, found: dict[str, dict[str, Counter[str]]]) -> None:
    """A row for every test. Tests that were skipped on a device leave its cell empty."""
    for row, devices in found.items():
        ran = {device: _words(counts) for device, counts in devices.items() if set(counts) != {"skipped"}}
        cells.put(row, ran)
        bad = [f"{device}: {words}" for device, words in ran.items() if "failed" in words or "error" in words]
        if bad and row != ALL_TESTS:
            cells.empty(row, f"failed on {'; '.join(bad)}")


def _words(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items(), key=_order))


def _order(item: tuple[str, int]) -> tuple[bool, str]:
    return item[0] != "passed", item[0]
