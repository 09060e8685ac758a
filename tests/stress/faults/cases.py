"""The list of faults: which call of which command fails and how, and which limits a command gets."""

import errno
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from errno import EACCES, EIO, EMFILE, ENOMEM, ENOSPC, EROFS
from typing import Literal

from shards.spread import spread
from stress.faults.calls import Call
from stress.faults.runs import kind_of

READS, MOMENTS = 3, 16
"""Of each file that many reads fail (a cache is read in hundreds of pieces); so many moments of a command are tried
for what lasts longer than a call."""

FILLING, NAMING = (ENOSPC, EIO), (ENOSPC, EACCES, EROFS, EIO)
ERRORS = {
    **dict.fromkeys(("write", "pwrite64", "writev", "ftruncate", "fallocate", "copy_file_range", "sendfile"), FILLING),
    **dict.fromkeys(("fsync", "fdatasync"), (EIO, ENOSPC)),
    **dict.fromkeys(("open to write", "openat to write", "creat"), (*NAMING, EMFILE)),
    **dict.fromkeys(("mkdir", "mkdirat", "rename", "renameat", "renameat2", "link", "linkat"), NAMING),
    **dict.fromkeys(("unlink", "unlinkat", "rmdir"), (EACCES, EIO, EROFS)),
    **dict.fromkeys(("open", "openat"), (EIO, EMFILE, EACCES)),
    **dict.fromkeys(("read", "pread64", "readv", "getdents64"), (EIO,)),
    "mmap": (ENOMEM,),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """mode, at the `number`-th call of a kind: it fails once with `code`. Of all that write: they fail from then on,
    the folder is removed, the command gets Ctrl-C."""

    command: str
    mode: Literal["once", "ever", "gone", "stopped"]
    kind: str
    number: int
    code: int = 0

    def __str__(self) -> str:
        how = f" {errno.errorcode[self.code]}" if self.code else ""
        return f"{self.command}: {self.kind}{how}" if self.mode == "once" else f"{self.command}: {self.mode}{how}"


@dataclass(frozen=True, slots=True)
class Limit:
    """A disk of `size` bytes, `size` open files, files of `size` bytes, `size` bytes of memory beside what is used."""

    command: str
    mode: Literal["disk", "files", "bytes", "memory"]
    size: int

    def __str__(self) -> str:
        return f"{self.command}: little {self.mode}"


def faults_of(name: str, calls: Sequence[Call], seed: int) -> Iterator[Fault]:
    """Every call that writes fails, and a few of the reads of each file; with each seed the next of the errors."""
    seen: Counter[str] = Counter()
    reads: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for call in calls:
        kind = kind_of(call)
        if call.writes:
            yield Fault(name, "once", kind, seen[kind], _error(kind, seen[kind] + seed))
        else:
            reads[kind, call.path].append(seen[kind])
        seen[kind] += 1
    for (kind, _), numbers in reads.items():
        for i, place in enumerate(spread(len(numbers), READS)):
            yield Fault(name, "once", kind, numbers[place], _error(kind, i + seed))
    for number in spread(sum(call.writes for call in calls), MOMENTS):
        yield Fault(name, "ever", "any", number, (ENOSPC, EROFS)[(number + seed) % 2])
        yield Fault(name, "gone", "any", number)
        yield Fault(name, "stopped", "any", number)


def _error(kind: str, number: int) -> int:
    return ERRORS[kind][number % len(ERRORS[kind])]


LINE_BYTES = 4096
"""A command's lines go to a file too, which the limit must leave room for."""


def limits_of(name: str, written: int) -> Iterator[Limit]:
    """written: bytes that the command leaves."""
    if written:
        if os.geteuid() == 0:  # who may mount one
            yield from (Limit(name, "disk", 4096 * pages) for pages in spread(2 + 2 * written // 4096, MOMENTS))
        yield from (Limit(name, "bytes", LINE_BYTES + size) for size in spread(written, MOMENTS // 2))
    yield from (Limit(name, "files", size) for size in range(1, MOMENTS))
    yield from (Limit(name, "memory", (1 << 18) * 2**i) for i in range(12))
