"""Guided: mutants that a fuzzer (atheris, libFuzzer) chooses by the lines of our code that they reach.

A case is a run over one target, in a process of its own, in which our three packages are instrumented.
What reached new lines is kept in runs/stress/corpus, and later runs begin with it.
"""

import contextlib
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import ClassVar

from stress.campaign import Campaign, Outcome, held, hung, missed

RUNS, ROUNDS = 5_000, 2
CORPUS = Path("runs/stress/corpus").resolve()
SECONDS = 600
LONGEST = 65_536  # bytes of a mutant


class Guided(Campaign):
    """`runs`: mutants of a case."""

    name: ClassVar[str] = "guided"
    unit: ClassVar[str] = f"runs of {RUNS:,} mutants"
    runs = RUNS

    def __init__(self, ground: Path, seed: int) -> None:
        from stress.mutants.targets import targets

        self.ground, self.seed = ground, seed
        self.names = list(targets(ground / "names"))

    def __len__(self) -> int:
        return ROUNDS * len(self.names)

    def case(self, number: int) -> Outcome:
        name = self.names[number % len(self.names)]
        command = [sys.executable, "-m", "stress.mutants.guided", name, str(CORPUS), f"-runs={self.runs}"]
        options = [f"-seed={self.seed * 1000 + number + 1}", f"-max_len={LONGEST}", "-timeout=60", "-rss_limit_mb=4096"]
        try:
            done = subprocess.run(
                [*command, *options], capture_output=True, text=True, timeout=SECONDS, cwd=self.ground
            )
        except subprocess.TimeoutExpired:
            return hung(name, "no end")
        found = re.findall(r"^FAULT (.*)$", done.stdout, re.MULTILINE)
        ran = re.search(r"^Done (\d+) runs", done.stderr, re.MULTILINE)
        if done.returncode or found or ran is None:
            return missed(name, f"{done.returncode} {found[:1] or done.stderr.strip()[-300:]}")
        return held(name, others=int(ran[1]) - 1)


def main() -> None:
    """python -m stress.mutants.guided TARGET CORPUS [options of libFuzzer]"""
    import atheris

    name, corpus, *options = sys.argv[1:]
    with atheris.instrument_imports(include=["shards", "precompute", "student"]):
        from stress.mutants.guard import Guard
        from stress.mutants.targets import targets
    ground = Path(tempfile.mkdtemp(prefix="guided-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    target = targets(ground)[name]
    kept = Path(corpus) / re.sub(r"\W+", "-", name)
    kept.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds:
        (kept / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
        target.put(seed)
        with contextlib.suppress(Exception):
            target.work()  # imports what it needs
    guard = Guard([ground], room=None)

    def one(content: bytes) -> None:
        target.put(content)
        if (fault := guard.judge(target.work)) is not None:
            print(f"FAULT {fault} {content[:200]!r}", flush=True)
            os._exit(77)

    atheris.Setup([sys.argv[0], *options, str(kept)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
