"""python -m benchmarks.cluster: one cache by one process, torchrun and Ray, with workers killed and drivers stopped.

Every build must have the bytes of the first. The models are tiny; a shard takes a part of a second. Writes
results.json and cluster.md into --out, and prints the table.
"""

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.cluster.commands import BUILD, RAY, TORCHRUN, Ended, finish, hashes, kill_after, kill_workers, start
from benchmarks.command import parse, quiet
from benchmarks.machine import processor, versions
from benchmarks.tokenizing.layouts import make_tokenizer, synthetic_pairs, write_rows
from benchmarks.tokenizing.measure import tiny_trio
from shards.cli.command import flag, require_at_least, run_command
from shards.errors import AlignDistilError

VERSIONS = ("torch", "transformers", "pyarrow", "ray")
ENGINES = {"one process": BUILD, "torchrun, 2 processes": [*TORCHRUN, *BUILD], "Ray, 2 workers": BUILD}


@dataclass(kw_only=True)
class ClusterOptions:
    """Flags of the benchmark. Raises OptionError."""

    pairs: int = flag(200, "pairs of synthetic text")
    words: int = flag(60, "mean words of a response")
    tokens_per_shard: int = flag(500, "response tokens of a shard")
    kills: int = flag(20, "workers killed in the middle of a shard, at random moments, in all")
    kills_of_a_build: int = flag(20, "of these in one build")
    seed: int = flag(0, "of the text and of the moments")
    out: str = flag("runs/cluster", "folder for models, caches and results")

    def __post_init__(self) -> None:
        require_at_least(self, 1, ("pairs", "words", "tokens_per_shard", "kills", "kills_of_a_build"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cases:
    """The builds of one set of inputs."""

    options: ClusterOptions
    folder: Path
    flags: list[str]

    def arguments(self, engine: str, out: str) -> list[str]:
        ray = [*RAY, "--max_retries", "20"] if engine.startswith("Ray") else []
        return [*ENGINES[engine], *self.flags, "--out", str(self.folder / out), *ray]

    def run(self, engine: str, out: str, during: Callable[[Any], Any] = lambda process: None) -> tuple[Ended, Any]:
        log, begun = self.folder / f"{out}.log", time.monotonic()
        process = start(self.arguments(engine, out), log)
        found = during(process)
        ended = finish(process, begun, log)
        if ended.code:
            raise AlignDistilError(f"{log}: expected a build that ends well, got {ended.last}")
        return ended, found

    def stop(self, engine: str, out: str, shards: int) -> int:
        """Kill a build when so many shards are there; how many there are."""
        folder = self.folder / out

        def count() -> int:
            return len(list(folder.glob("part-*.arrow")))

        process = start(self.arguments(engine, out), self.folder / f"{out}.log")
        kill_after(process, lambda: count() >= shards)
        return count()

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row for each way to the cache."""
        for name, engine in zip(("one", "torchrun", "ray"), ENGINES, strict=True):
            ended, _ = self.run(engine, name)
            yield {"how": engine, "out": name, "seconds": ended.seconds, "what": ""}
        rng, left, number = random.Random(self.options.seed), self.options.kills, 0
        while left > 0:
            asked = min(left, self.options.kills_of_a_build)
            ended, killed = self.run("Ray, 2 workers", f"killed-{number}", lambda p, n=asked: kill_workers(p, n, rng))
            how = f"Ray, {len(killed)} kills of a worker inside a shard"
            yield {"how": how, "out": f"killed-{number}", "seconds": ended.seconds, "what": ", ".join(killed)}
            left, number = left - len(killed), number + 1
        total = len(list((self.folder / "one").glob("part-*.arrow")))
        first = self.stop("Ray, 2 workers", "stopped", total // 4)
        second = self.stop("torchrun, 2 processes", "stopped", total // 2)
        ended, _ = self.run("one process", "stopped")
        how = f"Ray, killed at {first} of {total} shards; torchrun, killed at {second}; one process"
        yield {"how": how, "out": "stopped", "seconds": ended.seconds, "what": ""}


def make_cases(options: ClusterOptions) -> Cases:
    """The inputs, made on the spot."""
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    pairs = synthetic_pairs(options.pairs, options.words, options.seed)
    write_rows(folder / "pairs.jsonl", "text pairs", pairs, len(pairs))
    models = [f"{role}={path}" for role, path in tiny_trio(folder, make_tokenizer(pairs)).items()]
    given = ["--models", *models, "--data", str(folder / "pairs.jsonl"), "--responses", "both"]
    sizes = ["--tokens_per_shard", str(options.tokens_per_shard), "--max_top_k", "256", "--top_k", "16"]
    return Cases(options=options, folder=folder, flags=[*given, *sizes])


def page(results: dict[str, Any]) -> str:
    settings = results["settings"]
    lines = [
        "# One cache, several engines",
        f"Written by `{settings['command']}` on {settings['machine']}; {settings['versions']}. Seconds are of whole "
        "commands, the start of Ray and the loading of libraries included; of a build that was stopped, of its last "
        "part.",
        "| build | seconds | shards | files with other bytes |\n|---|--:|--:|--:|\n"
        + "\n".join(
            f"| {row['how']} | {row['seconds']:.0f} | {row['shards']} | {row['different']} |" for row in results["rows"]
        ),
    ]
    return "\n\n".join(lines) + "\n"


def run(options: ClusterOptions, command: str) -> dict[str, Any]:
    """Run all builds. Raises AlignDistilError if one fails or has other bytes than the first."""
    cases, out = make_cases(options), Path(options.out)
    settings = asdict(options) | {"command": command, "machine": processor(), "versions": versions(VERSIONS)}
    results: dict[str, Any] = {"settings": settings, "rows": []}
    expected: dict[str, str] = {}
    for row in cases.rows():
        found = hashes(out / row["out"])
        expected = expected or found
        different = sum(found.get(name) != expected.get(name) for name in {*found, *expected})
        shards = sum(name.startswith("part-") for name in found)
        results["rows"].append(row | {"shards": shards, "different": different})
        (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        (out / "cluster.md").write_text(page(results))
        if different:
            raise AlignDistilError(f"{out / row['out']}: expected the bytes of {out / 'one'}, got {different} others")
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    options, command = parse(ClusterOptions, "benchmarks.cluster", __doc__, arguments)
    quiet()
    print(page(run(options, command)))


if __name__ == "__main__":
    run_command(main)
