"""Builds in processes of their own, and how they are killed."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

BUILD = ["-m", "precompute.build"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
RAY = ["--ray", "local", "--workers", "2"]


class Ended(NamedTuple):
    """A command that has ended: seconds, exit code, what it printed last on stderr."""

    seconds: float
    code: int
    last: str


def start(arguments: Sequence[str], log: Path) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, *arguments], env=environment, stdout=file, stderr=file, start_new_session=True
        )


def finish(process: "subprocess.Popen[bytes]", begun: float, log: Path, timeout_seconds: float = 600) -> Ended:
    code = process.wait(timeout=timeout_seconds)
    lines = [line for line in log.read_text().replace("\r", "\n").splitlines() if line.strip()]
    return Ended(time.monotonic() - begun, code, lines[-1] if lines else "")


def hashes(folder: Path) -> dict[str, str]:
    """sha256 by file name; hidden files are files too."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def kill_workers(process: "subprocess.Popen[bytes]", kills: int, rng: random.Random) -> list[str]:
    """Kill workers of a local cluster, each at a random moment of a shard; what each had in work."""
    found: list[str] = []
    while process.poll() is None and len(found) < kills:
        workers = [worker for worker in _children(process) if title(worker).startswith("ray::shard ")]
        if workers:
            worker = rng.choice(workers)
            work = title(worker)
            time.sleep(rng.uniform(0, 0.3))
            if title(worker) == work:
                worker.kill()
                found.append(work.removeprefix("ray::"))
                time.sleep(rng.uniform(0, 4))
        time.sleep(0.005)
    return found


def kill_after(process: "subprocess.Popen[bytes]", ready: Callable[[], bool]) -> None:
    """Kill a command, with the processes of its launcher, once `ready`."""
    while process.poll() is None and not ready():
        time.sleep(0.01)
    ranks = [child for child in _children(process) if "precompute.build" in " ".join(_command(child))]
    os.kill(process.pid, signal.SIGKILL)
    for rank in ranks:
        rank.kill()
    process.wait()


def title(process: psutil.Process) -> str:
    return (_command(process) or [""])[0]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _children(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        return []
