"""The parts of the benchmark: cells that are written as soon as they are known, and time limits that hold.

A part is a process of its own, forked from one that has the libraries loaded and has never used the GPU. So a part that
breaks the device, fills its memory or does not end takes nothing from the parts after it.
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.options import GpuOptions
from shards.errors import first_line

Cell = float | str
GRACE_SECONDS = 15.0
"""What a part may take beyond its limit, which it looks at between two measurements, before it is ended."""
NO_GPU = "no GPU was at hand"


class OutOfTime(Exception):
    """A part has too little time left for its next measurement."""


class NotHere(Exception):
    """Something cannot be measured on this machine; its text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of the benchmark.

    module, function   what measures it: called with its Cells and the options
    planned            the function of that module that names its rows, so that those not reached are there, empty
    share              of the time of all parts
    """

    module: str
    function: str = "measure"
    planned: str = "planned"
    share: float

    def rows(self, options: GpuOptions) -> list[str]:
        return getattr(importlib.import_module(self.module), self.planned)(options)

    def measure(self, cells: "Cells", options: GpuOptions) -> None:
        getattr(importlib.import_module(self.module), self.function)(cells, options)


PARTS = {
    "tests": Part(module="benchmarks.gpu.suite", share=0.24),
    "build": Part(module="benchmarks.gpu.build", share=0.32),
    "step": Part(module="benchmarks.gpu.step", share=0.22),
    "dtypes": Part(module="benchmarks.gpu.dtypes", share=0.10),
    "loader": Part(module="benchmarks.gpu.step", function="measure_loader", planned="planned_loader", share=0.12),
}


class Cells:
    """The cells of a part, in a JSON file that is written again, whole, at every change.

    rows    row -> column -> value; a column that is not there is an empty cell
    why     row -> why its cells are empty
    facts   what belongs to the part as a whole
    """

    def __init__(self, path: Path, planned: Sequence[str], seconds: float) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Cell]] = {name: {} for name in planned}
        self.why: dict[str, str] = {}
        self.facts: dict[str, Any] = {}
        self.state = "running"
        self.limit = seconds
        self._started = time.monotonic()
        self._write()

    def put(self, row: str, values: Mapping[str, Cell]) -> None:
        """Add cells to a row."""
        self.rows.setdefault(row, {}).update(values)
        self._write()

    def empty(self, row: str, why: str) -> None:
        """Say why a row's other cells stay empty."""
        self.rows.setdefault(row, {})
        self.why[row] = why
        self._write()

    def fact(self, **facts: Any) -> None:
        self.facts |= facts
        self._write()

    def end(self, state: str) -> None:
        """Raises nothing: the last thing that a part does."""
        self.state = state
        self._write()

    @property
    def left(self) -> float:
        """Seconds until the limit."""
        return self.limit - (time.monotonic() - self._started)

    def need(self, seconds: float) -> None:
        """Raise OutOfTime if fewer seconds are left."""
        if self.left < seconds:
            raise OutOfTime(f"{self.left:.0f} s left of {self.limit:.0f}, {seconds:.0f} needed")

    @contextlib.contextmanager
    def row(self, name: str, *, seconds: float = 0.0) -> Iterator[None]:
        """Around the measurement of a row: what goes wrong there is said in the row, and the next one is measured.

        seconds: about what it takes. Raises OutOfTime, which ends the part, if fewer are left.
        """
        try:
            self.need(seconds)
            yield
        except OutOfTime as exc:
            self.empty(name, f"out of time: {exc}")
            raise
        except NotHere as exc:
            self.empty(name, str(exc))
        except Exception as exc:  # it must cost one row, not the part
            traceback.print_exc()
            self.empty(name, f"failed: {type(exc).__name__}: {first_line(exc)}")

    def to_json(self) -> dict[str, Any]:
        names = ("state", "limit", "rows", "why", "facts")
        return {name: getattr(self, name) for name in names} | {"seconds": time.monotonic() - self._started}

    def _write(self) -> None:
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.to_json(), indent=1) + "\n")
        temporary.replace(self.path)


def run_part(name: str, part: Part, options: GpuOptions, seconds: float, *, apart: bool) -> dict[str, Any]:
    """Measure a part; the content of its file. apart: in a process of its own, which is ended after its limit."""
    path = Path(options.out) / f"{name}.json"
    path.unlink(missing_ok=True)
    if not apart:
        _measure(part, options, path, seconds)
        return json.loads(path.read_text())
    log = path.with_suffix(".log")
    process = _context().Process(target=_logged, args=(part, options, path, seconds, log), daemon=False)
    started = time.monotonic()
    process.start()
    process.join(seconds + GRACE_SECONDS)
    late = process.is_alive()
    if late:
        process.kill()
        process.join()
    found = json.loads(path.read_text()) if path.exists() else {"rows": {}, "why": {}, "facts": {}, "limit": seconds}
    if late or found.get("state") in (None, "running"):
        ended = f"after {seconds + GRACE_SECONDS:.0f} s" if late else f"with exit code {process.exitcode}; see {log}"
        found |= {"state": f"{'ended' if late else 'failed:'} {ended}", "seconds": time.monotonic() - started}
    return found


def skipped(name: str, part: Part, options: GpuOptions, why: str) -> dict[str, Any]:
    """The content of the file of a part that is not measured."""
    cells = Cells(Path(options.out) / f"{name}.json", part.rows(options), 0.0)
    cells.end(why)
    return cells.to_json()


def limits(shares: Mapping[str, float], seconds: float) -> dict[str, float]:
    """Each part's own seconds, of `seconds` for all of them."""
    total = sum(shares.values())
    return {name: seconds * share / total for name, share in shares.items()}


def _measure(part: Part, options: GpuOptions, path: Path, seconds: float) -> None:
    cells = Cells(path, [], seconds)
    try:
        for row in part.rows(options):
            cells.rows.setdefault(row, {})
        part.measure(cells, options)
        failed = [row for row, why in cells.why.items() if why.startswith("failed")]
        cells.end(f"failed: {len(failed)} of {len(cells.rows)} rows, the first is {failed[0]}" if failed else "done")
    except OutOfTime as exc:
        cells.end(f"out of time: {exc}")
    except Exception as exc:  # it must cost one part, not the benchmark
        traceback.print_exc()
        cells.end(f"failed: {type(exc).__name__}: {first_line(exc)}")


def _logged(part: Part, options: GpuOptions, path: Path, seconds: float, log: Path) -> None:
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(sink, number)
    _measure(part, options, path, seconds)


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(sorted({part.module for part in PARTS.values()}))
    return context
