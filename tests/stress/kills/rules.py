"""What each command may leave behind when it is killed, and from where it must go on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Whole = Mapping[str, bytes]
"""The files of an undisturbed run, by their path in the folder of the case."""


class CacheRules:
    """A build or a copy: a file that has its name is whole, and a manifest comes after all others."""

    differs = ()

    def left(self, out: Path, whole: Whole) -> str:
        found = {path.name: path.read_bytes() for path in out.glob("[!._]*")}
        wanted = {Path(name).name: content for name, content in whole.items()}
        return whole_or_absent(found, wanted)

    def before(self, out: Path) -> dict[str, tuple[int, int]]:
        return {path.name: _identity(path) for path in out.glob("part-*")}

    def went_on(self, out: Path, before: Any, said: str) -> str:
        again = [name for name, found in before.items() if _identity(out / name) != found]
        return f"expected finished shards to stay, found {', '.join(again)} written again" if again else ""


class RolloutRules:
    """Batches that were written whole are not sampled again."""

    differs = ()

    def left(self, out: Path, whole: Whole) -> str:
        found = {out.name: out.read_bytes()} if out.exists() else {}
        return whole_or_absent(found, {out.name: whole[f"rollout/{out.name}"]})

    def before(self, out: Path) -> int:
        """How many batches of two samples are there."""
        partial = out.with_name(f"{out.name}.partial")
        if out.exists():
            return 3
        return partial.read_bytes().count(b"\n") // 2 if partial.exists() else 0

    def went_on(self, out: Path, before: Any, said: str) -> str:
        batches = said.count("sampled a batch")
        return "" if batches + before <= 3 else f"expected {3 - before} batches to be sampled, got {batches}"


class TrainRules:
    """A run goes on from the newest checkpoint that is whole; a student is whole or has no config.json."""

    differs = ("trainer_state.json", "distill_run.json", "eval_results.json", "all_results.json")
    """They hold times, and sizes of files that do."""

    def left(self, out: Path, whole: Whole) -> str:
        files = {path.name: path.read_bytes() for path in out.glob("[!.]*") if path.is_file()}
        if "config.json" in files:
            student = {name: content for name, content in _student(whole).items() if name not in self.differs}
            return "" if files.items() >= student.items() else "expected a whole student with its config.json"
        return ""

    def before(self, out: Path) -> str | None:
        return _newest_signed(out, "distill_run.json")

    def went_on(self, out: Path, before: Any, said: str) -> str:
        got = said.partition("resumed  after ")[2].partition(";")[0].partition(",")[0].partition("\n")[0] or None
        return "" if got == before else f"expected to go on from {before}, got {got}"


class TeacherRules:
    """Each role goes on from its newest checkpoint that is whole; a finished one stays as it is."""

    differs = ()

    def left(self, out: Path, whole: Whole) -> str:
        for role in ("dpo", "reverse"):
            found = {path.name: path.read_bytes() for path in (out / role).glob("*")}
            wanted = {Path(name).name: content for name, content in whole.items() if f"/{role}/" in name}
            if found and found != wanted:
                return f"expected {role} whole or absent, found {', '.join(sorted(found))}"
        return ""

    def before(self, out: Path) -> dict[str, str | None]:
        roles = [role for role in ("dpo", "reverse") if not (out / role).exists()]
        return {role: _newest_signed(out / "training" / role, "made_from.json") for role in roles}

    def went_on(self, out: Path, before: Any, said: str) -> str:
        for role in ("dpo", "reverse"):
            lines = [line for line in said.splitlines() if line.startswith(f"{out / role}: ")]
            line = next((line for line in lines if "left aside" not in line), "")
            if role not in before:
                if "already trained" not in line:
                    return f"expected {role} to be recognised, got {line}"
            elif (line.partition("going on from ")[2] or None) != before[role]:
                return f"expected {role} to go on from {before[role]}, got {line}"
        return ""


def whole_or_absent(found: Mapping[str, bytes], wanted: Mapping[str, bytes]) -> str:
    """Faults of a cache, or of one file."""
    for name, content in found.items():
        if content != wanted.get(name):
            return f"expected {name} whole or absent, found other bytes"
    if "manifest.json" in found and (less := wanted.keys() - found.keys()):
        return f"expected a manifest after all else, found none of {', '.join(sorted(less))}"
    return ""


def _student(whole: Whole) -> dict[str, bytes]:
    return {Path(name).name: content for name, content in whole.items() if name.count("/") == 1}


def _newest_signed(out: Path, record: str) -> str | None:
    """The newest checkpoint whose record lists its files as they are."""
    found = []
    for folder in out.glob("checkpoint-*"):
        try:
            files = json.loads((folder / record).read_text())["files"] or {"": 0}
            if all((folder / name).stat().st_size == size for name, size in files.items()):
                found.append((int(folder.name.rpartition("-")[2]), folder.name))
        except (OSError, ValueError, KeyError):
            continue
    return max(found)[1] if found else None


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns
