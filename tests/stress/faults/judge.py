"""What a command must have done when a call failed: one line that names the file, nothing half, nothing lost."""

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from stress.forked import Ended

TEMPORARY = re.compile(r"^\.(?P<file>.+)\.[^.]+-\d+[^.]*\.(?:[\w]+\.)?aligndistil-tmp$")
UNFINISHED = re.compile(r"^checkpoint-\d+$|^training$|^\.|\.partial$")
"""Folders and files that count only when something else says so (a signature, a rename)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Undisturbed:
    """What a command leaves and says when nothing fails.

    contents: path -> hash, or None if two runs differ there. bytes: of all files.
    """

    contents: Mapping[str, str | None]
    lines: frozenset[str]
    bytes: int


def is_stable(path: str) -> bool:
    """Whether a file has the same bytes in every run: not a log with times, nor the record of its size."""
    name = Path(path).name
    return name not in ("trainer_state.json", "training_args.bin") and not path.endswith("/distill_run.json")


def contents(folder: Path) -> dict[str, str]:
    """Path below a folder -> hash of the content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith("aligndistil-lock")
    }


def wrong_end(ended: Ended, undisturbed: Undisturbed, places: Collection[str]) -> str | None:
    """What is wrong with how a command ended that could not go on; None if nothing. places: any may be named."""
    lines = [line for line in ended.err.splitlines() if line.strip() and line not in undisturbed.lines]
    if ended.code is None:
        return "expected an end, got none in time"
    if any(line.startswith("Traceback") for line in lines):
        return f"expected no traceback, got one: {lines[-1]}"
    if ended.code == 1 and not lines and any(_names(line, places) for line in ended.out.splitlines()):
        return None  # shards.verify prints what it cannot read as a fault
    if ended.code != 2:
        return f"expected exit code 2, got {ended.code}: {' / '.join(lines)}"
    if len(lines) != 1 or not lines[0].startswith("error: "):
        return f"expected one line, got {len(lines)}: {' / '.join(lines)}"
    if not _names(lines[0], places):
        return f"expected a line that names {min(places, key=len)} or below, got: {lines[0]}"
    return None


def wrong_interruption(ended: Ended, undisturbed: Undisturbed) -> str | None:
    """What is wrong with how a command ended after Ctrl-C."""
    lines = [line for line in ended.err.splitlines() if line.strip() and line not in undisturbed.lines]
    if ended.code != 130 or len(lines) != 1 or not lines[0].startswith("interrupted"):
        return f"expected exit code 130 and one line, got {ended.code}: {' / '.join(lines)[-600:]}"
    return None


def _names(line: str, places: Collection[str]) -> bool:
    """Whether a line names one of these, or, for a name that ends in a slash, something in that folder."""
    ends = {place: "" if place.endswith("/") else r"(?![\w/-]|\.\w)" for place in places}
    return any(re.search(re.escape(place) + end, line) for place, end in ends.items())


def names_of(path: str, roots: Collection[Path]) -> list[str]:
    """The names under which a file may be told: itself, the file that it becomes, and the folders around it; a folder
    also by what is in it."""
    found = Path(path)
    while match := TEMPORARY.match(found.name):
        found = found.with_name(match["file"])
    around = [str(folder) for folder in (found, *found.parents) if any(folder.is_relative_to(root) for root in roots)]
    return [path, *around, *([f"{path}/"] if found.is_dir() else [])]


def half(folder: Path, undisturbed: Undisturbed) -> Iterator[str]:
    """The files under their final names that are not as an undisturbed command leaves them."""
    for path, found in contents(folder).items():
        if any(UNFINISHED.search(part) for part in Path(path).parts):
            continue
        if path not in undisturbed.contents:
            yield f"{path} is no file that it leaves"
        elif undisturbed.contents[path] not in (None, found):
            yield f"{path} has its name and is not whole"


def unlike(folder: Path, undisturbed: Undisturbed, *, temporary: bool) -> Iterator[str]:
    """How the end differs from that of a command that nothing disturbed. temporary: such files may be left."""
    found, wanted = contents(folder), undisturbed.contents
    found = {path: content for path, content in found.items() if not (temporary and TEMPORARY.match(Path(path).name))}
    yield from (f"{path} is missing" for path in sorted(wanted.keys() - found.keys()))
    yield from (f"{path} is left over" for path in sorted(found.keys() - wanted.keys()))
    yield from (f"{path} has other bytes" for path in sorted(wanted) if wanted[path] not in (None, found.get(path)))
