"""Faults: every call about files fails once, in every command that writes."""

import errno
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.spread import spread
from stress.campaign import Campaign, Outcome, held, hung, missed
from stress.faults.calls import Call
from stress.faults.commands import COMMANDS
from stress.faults.judge import Undisturbed, half, names_of, unlike, wrong_end
from stress.faults.runs import FailOnce, Runs, kind_of
from stress.forked import Ended

READS = 3
"""Of each file, that fail; a cache is read in hundreds of pieces."""

E_ = errno
ERRORS = {
    **dict.fromkeys(
        ("write", "pwrite64", "writev", "ftruncate", "fallocate", "copy_file_range", "sendfile"), (E_.ENOSPC, E_.EIO)
    ),
    **dict.fromkeys(("fsync", "fdatasync"), (E_.EIO, E_.ENOSPC)),
    **dict.fromkeys(("open to write", "openat to write", "creat"), (E_.ENOSPC, E_.EACCES, E_.EMFILE, E_.EROFS, E_.EIO)),
    **dict.fromkeys(
        ("mkdir", "mkdirat", "rename", "renameat", "renameat2", "link", "linkat"),
        (E_.ENOSPC, E_.EACCES, E_.EROFS, E_.EIO),
    ),
    **dict.fromkeys(("unlink", "unlinkat", "rmdir"), (E_.EACCES, E_.EIO, E_.EROFS)),
    **dict.fromkeys(("open", "openat"), (E_.EIO, E_.EMFILE, E_.EACCES)),
    **dict.fromkeys(("read", "pread64", "readv", "getdents64"), (E_.EIO,)),
    "mmap": (E_.ENOMEM,),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """The `number`-th call of a kind that a command makes fails with `code`."""

    command: str
    kind: str
    number: int
    code: int


class Faults(Campaign):
    name, unit = "faults", "faults"

    def __init__(self, ground: Path, seed: int, commands: Sequence[str] = tuple(COMMANDS)) -> None:
        self.seed = seed
        self.runs = Runs.prepare(ground, commands)
        self.undisturbed: dict[str, Undisturbed] = {}
        self.faults: list[Fault] = []
        for name in commands:
            self.undisturbed[name], calls = self.runs.undisturbed(COMMANDS[name])
            self.faults += _faults(name, calls)

    def __len__(self) -> int:
        return len(self.faults)

    def case(self, number: int) -> Outcome:
        fault = self.faults[number]
        kind = f"{fault.command}: {fault.kind} {errno.errorcode[fault.code]}"
        self.runs.clear()
        fails = FailOnce(kind=fault.kind, number=fault.number, code=fault.code, here=self.runs.places.here)
        ended = self.runs.watched(COMMANDS[fault.command], fails, [fault.kind.removesuffix(" to write")])
        return self.judged(kind, fault.command, ended, fails.call, fails.there)

    def judged(self, kind: str, name: str, ended: Ended, call: Call | None, there: frozenset[str]) -> Outcome:
        undisturbed, here = self.undisturbed[name], self.runs.places.here
        what = "no call" if call is None else f"{call.name} of {call.path}"
        if ended.code is None:
            return hung(kind, f"{what}: no end")
        if ended.code:
            if call is None:
                return missed(kind, f"{what}: {ended.err}")
            places = names_of(call.path, self.runs.roots)
            if wrong := wrong_end(ended, undisturbed, places):
                return missed(kind, f"{what}: {wrong}")
            for wrong in half(here, undisturbed):
                return missed(kind, f"{what}: {wrong}")
            if lost := [f for f in there & undisturbed.contents.keys() if not (here / f).exists()]:
                return missed(kind, f"{what}: lost {lost}")
            ended = self.runs.plain(COMMANDS[name])
            if ended.code is None:
                return hung(kind, f"{what}: the command after it did not end")
            if ended.code:
                return missed(kind, f"{what}: the command after it ended with {ended.code}: {ended.err[-600:]}")
        elif call is not None and call.name in ("fsync", "fdatasync"):
            return missed(kind, f"{what}: not on the disk, and nothing said so")
        for wrong in unlike(here, undisturbed):
            return missed(kind, f"{what}: {wrong}")
        return held(kind)


def _faults(name: str, calls: Sequence[Call]) -> Iterator[Fault]:
    """Every call that writes fails with every error; of the reads of one file a few, with one error each."""
    seen: Counter[str] = Counter()
    reads: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for call in calls:
        kind = kind_of(call)
        if call.writes:
            yield from (Fault(name, kind, seen[kind], code) for code in ERRORS[kind])
        else:
            reads[kind, call.path].append(seen[kind])
        seen[kind] += 1
    for (kind, _), numbers in reads.items():
        for i, place in enumerate(spread(len(numbers), READS)):
            yield Fault(name, kind, numbers[place], ERRORS[kind][i % len(ERRORS[kind])])
