"""A round of the bare lock: processes take it again and again, and look whether another one is at work too.

A referee finds that out: a record lock (fcntl) of a file outside, which dies with its process too, but shares nothing
with what is tested. Where folders are removed the owner of the removed one cannot know at once, so there the files
decide: whoever reads another's file under its own lock has not been alone.
"""

import fcntl
import json
import os
import platform
import re
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from shards.errors import CacheConflict, CacheMissing
from shards.format.manifest import read_json
from shards.format.writer import write_json
from shards.locks import lock
from stress import forked

KINDS = ("in peace", "killed", "killed with a loader", "suspended", "folder removed", "waiting")
TURNS = 6
"""How often a process wants the lock."""
LOADER_SECONDS = 3 * lock.SECONDS_TO_SIGN
"""How long a loader outlives its parent: longer than anybody waits for a new owner to say who it is."""
SECONDS = 60
"""Within which all must have ended."""
REFUSAL = re.compile(r"^\S+: expected no other command at work here, found (.+) \(process (\d+) on (\S+), since .*\)$")
NAMELESS = "found one that does not say who it is"


def play(ground: Path, rng: Random) -> tuple[str, list[str]]:
    """A round; its kind, and what was wrong, a line each."""
    kind, count = rng.choice(KINDS), rng.choice((2, 8))
    ground.mkdir()
    try:
        turns = [start(ground, kind, number, rng.random()) for number in range(count)]
        ends = disturb(kind, turns, ground / "place", rng)
        return f"{kind}, {count} processes", [*judged(ground, kind, turns, ends), *left_over(ground, kind)]
    finally:
        shutil.rmtree(ground)


def start(ground: Path, kind: str, number: int, seed: float) -> int:
    return forked.start(lambda: take_turns(ground, kind, Random(seed)), ground / f"log-{number}")


# ---- in the forks


def take_turns(ground: Path, kind: str, rng: Random) -> None:
    """Want the lock, be alone for a moment, let it go. What happened is printed, a line each."""
    referee = os.open(ground / "referee", os.O_RDWR | os.O_CREAT)
    place = ground / "place"
    for _ in range(TURNS):
        begun = time.monotonic()
        try:
            with locked(kind, place):
                print(f"got {begun}", flush=True)
                (with_files if kind == "folder removed" else with_referee)(place, referee, rng, kind)
        except CacheConflict as exc:
            print(f"refused {begun} {exc}", flush=True)
        except FileNotFoundError:
            if kind != "folder removed":
                raise
        time.sleep(rng.random() * 0.002)


def locked(kind: str, place: Path):
    return lock.exclusive_file(place / "file", wait_seconds=SECONDS) if kind == "waiting" else lock.exclusive(place)


def with_referee(place: Path, referee: int, rng: Random, kind: str) -> None:
    try:
        fcntl.lockf(referee, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print("two at once", flush=True)
        return
    if kind == "killed with a loader" and os.fork() == 0:
        time.sleep(LOADER_SECONDS)
        os._exit(0)
    time.sleep(rng.random() * 0.003)
    fcntl.lockf(referee, fcntl.LOCK_UN)


def with_files(place: Path, referee: int, rng: Random, kind: str) -> None:
    for turn in range(3):
        mine = {"process": os.getpid(), "turn": turn}
        write_json(place, "work.json", mine)
        time.sleep(rng.random() * 0.001)
        try:
            found = read_json(place / "work.json")
        except CacheMissing:  # the folder was removed
            found = mine
        lock.require_held(place)
        if found != mine:
            print(f"two at once: expected {mine} in work.json, found {found}", flush=True)


# ---- the driver


def disturb(kind: str, processes: Sequence[int], place: Path, rng: Random) -> dict[int, float | None]:
    """Kill, suspend, remove while they work; wait for all. Process -> when it was reaped; None if it did not end."""
    killed = set(rng.sample(processes, len(processes) // 2)) if kind.startswith("killed") else set()
    ends: dict[int, float | None] = {}
    for pid in sorted(killed):
        time.sleep(rng.random() * 0.01)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        ends[pid] = time.monotonic()
    if kind == "suspended":
        for pid in rng.sample(processes, len(processes) // 2):
            time.sleep(rng.random() * 0.005)
            os.kill(pid, signal.SIGSTOP)
            time.sleep(rng.random() * 0.02)
            os.kill(pid, signal.SIGCONT)
    if kind == "folder removed":
        for _ in range(5):
            time.sleep(rng.random() * 0.005)
            shutil.rmtree(place, ignore_errors=True)
    for number, pid in enumerate(processes):
        if pid not in ends:
            done = forked.wait(pid, place.parent / f"log-{number}", SECONDS)
            ends[pid] = time.monotonic() if done.code is not None else None
    return ends


def judged(ground: Path, kind: str, processes: Sequence[int], ends: dict[int, float | None]) -> Iterator[str]:
    """What is wrong with what the processes said."""
    for number, pid in enumerate(processes):
        if ends[pid] is None:
            yield f"no end of process {pid} within {SECONDS} s"
        said, errors = (read(ground / f"log-{number}.{name}") for name in ("out", "err"))
        if errors:
            yield f"process {pid}: {errors.splitlines()[-1]}"
        if kind == "waiting" and said.count("got") < TURNS:
            yield f"process {pid}: expected the lock {TURNS} times, got it {said.count('got')} times"
        for line in said.splitlines(keepends=True):
            if line.endswith("\n"):  # else it was killed while it wrote
                yield from judged_line(line.strip(), pid, kind, ends)


def read(file: Path) -> str:
    """Nothing, if a process was killed before it began to write."""
    return file.read_text() if file.exists() else ""


def judged_line(line: str, pid: int, kind: str, ends: dict[int, float | None]) -> Iterator[str]:
    word, _, rest = line.partition(" ")
    if word == "two":
        yield line
    if word != "refused":
        return
    begun, _, message = rest.partition(" ")
    if "this command" in message:  # it lost the folder
        if kind != "folder removed":
            yield message
        return
    found = REFUSAL.match(message)
    if found is None:
        if not (kind == "suspended" and message.endswith(NAMELESS)):
            yield f"expected to hear who has the lock, got: {message}"
    elif int(found[2]) not in ends or int(found[2]) == pid or found[3] != platform.node():
        yield f"expected another process of {sorted(ends)}, got: {message}"
    elif (ended := ends[int(found[2])]) is not None and ended < float(begun):
        yield f"expected no process that had ended, got: {message}"


def left_over(ground: Path, kind: str) -> Iterator[str]:
    """What is wrong at the end: the lock must be free at once, and nothing may be left of it."""

    def last() -> None:
        with locked("waiting" if kind == "waiting" else "in peace", ground / "place"):
            pass

    done = forked.run(last, ground / "last", SECONDS)
    if done.code != 0:
        yield f"expected a free lock at the end, got {done.code}: {done.err.strip().splitlines()[-1:]}"
    place = ground / "place"
    files = [path.name for path in place.iterdir()] if place.exists() else []
    if rest := [name for name in files if "lock" in name]:
        yield f"expected no lock file at the end, found {json.dumps(rest)}"
