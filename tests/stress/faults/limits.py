"""Limits of a command: a small disk (tmpfs), few open files, small files, little memory."""

import contextlib
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from stress.faults.cases import Limit


@contextlib.contextmanager
def limited(limit: Limit, here: Path) -> Iterator[Callable[[], object]]:
    """What to do in the fork before the command; a small disk lies at `here` as long as the context lasts."""
    match limit.mode:
        case "disk":
            with small_disk(limit.size, here):
                yield lambda: None
        case "files":
            yield lambda: _lower(resource.RLIMIT_NOFILE, _most_open() + limit.size)
        case "bytes":
            yield lambda: _lower(resource.RLIMIT_FSIZE, limit.size)
        case "memory":
            yield lambda: _lower(resource.RLIMIT_AS, _mapped_bytes() + limit.size)


@contextlib.contextmanager
def small_disk(size: int, here: Path) -> Iterator[None]:
    """A disk at `here`; it is enlarged when the context ends, and what is on it stays until it is unmounted."""
    options = f"size={max(4096, size)},mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "stress-faults", here], check=True)
    try:
        yield
    finally:
        kept = here.with_name("kept")
        subprocess.run(["cp", "-a", f"{here}/.", str(kept)], check=True)
        subprocess.run(["umount", here], check=True)
        subprocess.run(["cp", "-a", f"{kept}/.", str(here)], check=True)
        subprocess.run(["rm", "-r", kept], check=True)


def _lower(what: int, size: int) -> None:
    resource.setrlimit(what, (size, resource.getrlimit(what)[1]))


def _most_open() -> int:
    return max(int(path.name) for path in Path("/proc/self/fd").iterdir())


def _mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
