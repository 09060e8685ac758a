"""python -m benchmarks.pages: size, time and memory of a cache's page, and how it opens in Chromium.

The cache is synthetic (`benchmarks.loading.synthetic`), or a given one. Each page is written by a process of its own.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.command import parse, quiet
from benchmarks.loading.options import LoadingOptions
from benchmarks.loading.synthetic import make_responses, write_cache
from benchmarks.machine import processor
from shards.cli.command import flag, require_at_least, run_command

WRITING = """
import sys
from pathlib import Path
from shards.inspect.__main__ import main
main(sys.argv[1:])
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""
"""The command in a process that says its peak. (What the system says of it would begin with its parent's memory.)"""
OPENING = """async () => {
  const frame = () => new Promise(requestAnimationFrame);
  const times = [];
  for (const row of page.rows.all.slice(0, 40)) {
    const begun = performance.now();
    page.rows.open(row.id);
    while (!document.querySelector(`.response[data-row="${row.id}"]`)) await frame();
    await frame();
    times.push(performance.now() - begun);
  }
  return times.toSorted((a, b) => a - b)[times.length >> 1];
}"""


@dataclass(kw_only=True)
class Options:
    """Flags of the benchmark. Raises OptionError."""

    shards: str = flag("", "a cache; default: a synthetic one")
    rows: int = flag(10_000, "responses of the synthetic cache")
    length: int = flag(40, "their mean number of tokens")
    page_mb: list[float] = flag([2.0, 8.0, 32.0], "a page of each")
    sample: int = flag(1_000, "responses that are asked for")
    out: str = flag("runs/pages", "folder for the cache and the results")

    def __post_init__(self) -> None:
        require_at_least(self, 1, ("rows", "length", "sample"))


def measure(options: Options) -> dict[str, Any]:
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    cache = Path(options.shards or out / "cache")
    if not options.shards and not (cache / "manifest.json").exists():
        shape = LoadingOptions(rows=options.rows, length=options.length, prompt=16, top_k=64)
        write_cache(cache, shape, list(make_responses(shape)), rows_per_batch=2)
    pages = [_page(cache, out / f"{size:g}.html", size, options.sample) for size in options.page_mb]
    return {"machine": f"{processor()}, {os.cpu_count()} cores", "cache_bytes": _bytes(cache), "pages": pages}


def _page(cache: Path, file: Path, page_mb: float, sample: int) -> dict[str, Any]:
    flags = ["--html", str(file), "--page_mb", str(page_mb), "--sample", str(sample)]
    before, begun = os.times(), time.perf_counter()
    command = [sys.executable, "-c", WRITING, str(cache), *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    after = os.times()
    found = {
        "page_mb": page_mb,
        "bytes": file.stat().st_size,
        "seconds": time.perf_counter() - begun,
        "processor_seconds": after.children_user
        + after.children_system
        - before.children_user
        - before.children_system,
        "peak_mib": int(done.stdout.split()[-1]) / 1024,
    }
    return found | _opened(file)


def _opened(file: Path) -> dict[str, Any]:
    """How the page opens in Chromium; nothing without one."""
    path = shutil.which("chromium")
    if path is None:
        return {}
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page()
        begun = time.perf_counter()
        page.goto(file.resolve().as_uri())
        page.wait_for_function("document.documentElement.dataset.ready === 'true'")
        ready = time.perf_counter() - begun
        found = {
            "rows": page.evaluate("page.rows.all.length"),
            "ready_seconds": ready,
            "row_milliseconds": page.evaluate(OPENING),
            "nodes": page.evaluate("document.querySelectorAll('*').length"),
        }
        browser.close()
    return found


def _bytes(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.glob("part-*.arrow"))


def main(arguments: Sequence[str] | None = None) -> None:
    options, _ = parse(Options, "benchmarks.pages", __doc__, arguments)
    quiet()
    found = measure(options)
    (Path(options.out) / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    run_command(main)
