"""python -m benchmarks.checks: what a reader's checks of integrity cost, of the time in which it reads.

Synthetic caches are read from the file to the tensors of a student's micro-batches. Each check is timed where it runs,
and its share is of the reading with all checks. `off` measures all of them in another way: the same micro-batch is read
with the checks and without any, in turn. Of every time the least of several rounds counts: other work only adds to it.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch

from benchmarks.command import parse
from benchmarks.loading.measure import Loader
from benchmarks.loading.options import LoadingOptions
from benchmarks.loading.synthetic import make_responses, write_cache
from benchmarks.machine import processor, versions
from shards.cli.command import flag, require_at_least, run_command
from shards.format import batches
from shards.format.content import screen
from shards.format.encoding import arrays
from shards.format.schema import VALUES
from shards.spread import spread

VERSIONS = ("numpy", "pyarrow", "zlib-ng")
GOAL = 0.05


@dataclass(kw_only=True)
class Options:
    """Flags of the benchmark. Raises OptionError."""

    lengths: list[int] = flag([128, 512], "mean response tokens: a cache of each")
    tokens: int = flag(32_768, "response tokens of each cache")
    micro_batch_size: int = flag(8, "responses that are read together")
    micro_batches: int = flag(8, "of an epoch that are measured")
    rounds: int = flag(7, "times that each is read")
    repeats: int = flag(3, "times that all is measured; medians are reported")
    out: str = flag("runs/checks", "folder for the caches and the results")

    def __post_init__(self) -> None:
        names = ["tokens", "micro_batch_size", "micro_batches", "rounds", "repeats"]
        require_at_least(self, 1, names)


class Meter:
    """Seconds in each kind of check while a micro-batch is read."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(KINDS, 0.0)

    @contextlib.contextmanager
    def timing(self) -> Iterator[None]:
        load = batches.load_batch

        def load_again(file: Any, number: int, *given: Any) -> tuple[Any, dict[bytes, bytes]]:
            """The checks of the layout are run once more, for their time: they stand among Arrow's reading."""
            found = load(file, number, *given)
            began = time.perf_counter()
            if hasattr(file, "form"):
                file.form.check(file.source, file.blocks[number], given[1])
            found[0].validate(full=True)
            self.seconds["layout"] += time.perf_counter() - began
            return found

        with contextlib.ExitStack() as stack:
            for name, (module, function) in TIMED.items():
                timed = self._timed(name, getattr(module, function), 1)
                stack.enter_context(mock.patch.object(module, function, timed))
            stack.enter_context(mock.patch.object(arrays, "flatten", self._timed("crc32", arrays.flatten, -1)))
            stack.enter_context(mock.patch.object(batches, "load_batch", load_again))
            yield

    def _timed(self, name: str, function: Callable[..., Any], sign: int) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*given)
            finally:
                self.seconds[name] += sign * (time.perf_counter() - began)

        return run


TIMED = {
    "crc32": (arrays, "check_crc32"),
    "lengths, counts, D_t": (screen, "misshapen"),
    "tokens": (screen, "wrong_tokens"),
    "ids, log-probs, tails, mass": (screen, "wrong_scores"),
}
KINDS = ("layout", *TIMED)


def _unchecked_batch(file: Any, number: int, *given: object) -> tuple[Any, dict[bytes, bytes]]:
    found = getattr(file, "reader", file).get_batch_with_custom_metadata(number)
    return found.batch, dict(found.custom_metadata)


@contextlib.contextmanager
def without_checks() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(batches, "load_batch", _unchecked_batch))
        stack.enter_context(mock.patch.object(arrays, "check_crc32", lambda batch, *given: arrays.flatten(batch)))
        for name in ("misshapen", "wrong_tokens", "wrong_scores"):
            stack.enter_context(mock.patch.object(screen, name, lambda *given: False))
        yield


def seconds(loader: Loader, items: Sequence[Any], how: AbstractContextManager[None]) -> float:
    with how:
        began = time.process_time()
        loader.collator(loader.data.__getitems__(items))
        return time.process_time() - began


def shares(loader: Loader, order: Sequence[Sequence[Any]], rounds: int) -> dict[str, float]:
    """The share of each kind, of all, and of all by leaving them out, in the time of reading these micro-batches."""
    total, without, parts = 0.0, 0.0, dict.fromkeys(KINDS, 0.0)
    for items in order:
        times: list[tuple[float, float]] = []
        meters = []
        for _ in range(rounds):
            meters.append(Meter())
            seconds(loader, items, meters[-1].timing())
            times.append((seconds(loader, items, contextlib.nullcontext()), seconds(loader, items, without_checks())))
        total += min(time for time, _ in times)
        without += min(time for _, time in times)
        for name in KINDS:
            parts[name] += min(meter.seconds[name] for meter in meters)
    found = {"all": sum(parts.values()), "off": total - without, **parts}
    return {name: part / total for name, part in found.items()}


def measure(options: Options, values: Any, length: int) -> list[dict[str, Any]]:
    """A row for each order of reading a cache of this kind."""
    rows = max(2 * options.micro_batch_size, options.tokens // length)
    sizes = LoadingOptions(rows=rows, length=length, values=values, micro_batch_size=options.micro_batch_size)
    folder = Path(options.out) / f"{values}-{length}"
    write_cache(folder, sizes, list(make_responses(sizes)), 1)
    loader = Loader(folder, sizes)
    orders = {"shuffled": list(loader.sampler), "sequential": loader.in_order}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in orders}
    for _ in range(options.repeats):
        for name, order in orders.items():
            some = [order[number] for number in spread(len(order), options.micro_batches)]
            found[name].append(shares(loader, some, options.rounds))
    return [
        {"values": values, "length": length, "order": name}
        | {kind: median(run[kind] for run in runs) for kind in runs[0]}
        for name, runs in found.items()
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    kinds = ["all", "off", *KINDS]
    lines = [f"| cache | order | {' | '.join(kinds)} |", f"|---|---|{'--:|' * len(kinds)}"]
    for row in rows:
        cells = " | ".join(f"{row[kind]:.1%}" for kind in kinds)
        lines.append(f"| {row['values']}, {row['length']} tokens | {row['order']} | {cells} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    options, command = parse(Options, "benchmarks.checks", __doc__, arguments)
    torch.set_num_threads(1)
    Path(options.out).mkdir(parents=True, exist_ok=True)
    rows = [row for values in VALUES for length in options.lengths for row in measure(options, values, length)]
    head = f"`{command}`; {processor()}, 1 thread; {versions(VERSIONS)}"
    (Path(options.out) / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    (Path(options.out) / "checks.md").write_text(f"{head}\n\n{table(rows)}\n")
    print(f"{head}\n\n{table(rows)}")


if __name__ == "__main__":
    run_command(main)
