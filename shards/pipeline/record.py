"""The finished steps of a pipeline: pipeline.json in its folder.

A step is recorded when it has ended well: its command, and a hash of the content of every path that it read or wrote.
Every run hashes all of them again, each once: sizes and times cannot tell whether a file has changed. Of a cache at a
URL the manifest stands for all files, and of another file there its ETag and size.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shards.errors import CacheConflict, CacheDamaged, OptionError
from shards.files import file_sha256, remove_temporary_files
from shards.format.manifest import differences, read_json
from shards.format.writer import write_json
from shards.locks.lock import exclusive_file
from shards.pipeline.step import Step
from shards.places.url import is_url
from shards.progress import progress
from shards.remote import content_of

RECORD_FILE = "pipeline.json"
FORMAT = 1
SECONDS_FOR_ANOTHER = 60.0
"""The longest wait for another pipeline that writes its step into the record."""


class Record:
    """The finished steps of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._steps = self._read()
        self._known: dict[str, str | None] = {}

    def require_same_command(self, step: Step) -> None:
        """Raise CacheConflict if a step was done with another command and its output still exists."""
        if self._was_done(step):
            for field, old, new in differences(self._steps[step.name]["command"], _command(step)):
                self._refuse(step, f"was done with {field} {old}, got {new}")

    def is_done(self, step: Step) -> bool:
        """Whether a step is done. Raises CacheConflict if its command, an input or its output has changed."""
        if not self._was_done(step):
            if step.command.overwrites and any(map(self._is_there, step.outputs)):
                raise CacheConflict(f"{step.outputs[0]}: expected nothing, found what step {step.name} did not write")
            return False
        self.require_same_command(step)
        for kind, text in (("outputs", "is not what it left"), ("inputs", "is not what it read")):
            for path, content in self._steps[step.name][kind].items():
                if self._content(path) != content:
                    self._refuse(step, f"{path} {text}")
        return True

    def inputs(self, step: Step) -> dict[str, str]:
        """Path -> hash of what a step will read. A hub name has no path here."""
        paths = {path: self._content(path) for path in map(_path_in, step.names_read) if path}
        return {path: content for path, content in paths.items() if content is not None}

    def add(self, step: Step, inputs: Mapping[str, str]) -> None:
        """Record a step that has ended well. inputs: their hashes from before it began."""
        self._known.clear()
        outputs = {path: self._content(path) for path in step.outputs}
        for path, content in outputs.items():
            if content is None:
                raise CacheConflict(f"step {step.name}: ended without an error, but there is no {path}")
        try:
            # another file of steps may share the folder
            with exclusive_file(self.folder / RECORD_FILE, wait_seconds=SECONDS_FOR_ANOTHER):
                remove_temporary_files(self.folder, RECORD_FILE)
                done = {"command": _command(step), "inputs": dict(inputs), "outputs": outputs}
                self._steps = self._read() | {step.name: done}
                write_json(self.folder, RECORD_FILE, {"format": FORMAT, "steps": self._steps})
        except CacheDamaged:
            raise
        except OSError as exc:
            raise OptionError(f"out: expected a folder to write to, got {self.folder} ({exc.strerror})") from exc

    def _read(self) -> dict[str, Any]:
        path = self.folder / RECORD_FILE
        if not path.exists():
            return {}
        found = read_json(path)
        if found.get("format") != FORMAT:
            raise CacheDamaged(f"{path}: expected a record of format {FORMAT}, got {found.get('format')!r}")
        steps = found.get("steps")
        if not isinstance(steps, dict) or not all(map(_is_step, steps.values())):
            raise CacheDamaged(f"{path}: expected steps with command, inputs and outputs, got {steps!s:.60}")
        return steps

    def _was_done(self, step: Step) -> bool:
        return step.name in self._steps and any(map(self._is_there, step.outputs))

    def _refuse(self, step: Step, what: str) -> None:
        raise CacheConflict(
            f"step {step.name}: {what}; put that back, or give the step another name and output, "
            f"or remove {' and '.join(step.outputs)} to have it done again"
        )

    def _content(self, path: str) -> str | None:
        """`_hashed`, once for each path until a step has run."""
        if path not in self._known:
            self._known[path] = content_of(path) if is_url(path) else _hashed(Path(path))
        return self._known[path]

    def _is_there(self, path: str) -> bool:
        return self._content(path) is not None if is_url(path) else Path(path).exists()


def _is_step(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"command", "inputs", "outputs"}:
        return False
    return all(isinstance(part, dict) for part in value.values())


def _hashed(path: Path) -> str | None:
    """Hash over names and content of the files of a path; None if nothing is there."""
    if not path.exists():
        return None
    digest, files = hashlib.sha256(), [*_files_of(path)]
    total = sum(file.stat().st_size for file in files)
    with progress(None, f"hashing {path}", total=total, unit="B", brief=True) as bar:
        for file in files:
            digest.update(f"{file.relative_to(path)}\0{file_sha256(file, bar.update)}\n".encode())
    return digest.hexdigest()


def _command(step: Step) -> dict[str, Any]:
    flags = {name: " ".join(values) for name, values in step.flags.items() if name != "quiet"}
    return {"run": step.module, "launch": " ".join(step.launch), "flags": flags}


def _path_in(name: str) -> str | None:
    """The path or URL in a flag's value: itself, or from role=path or file.py:function; None for a hub name."""
    if is_url(name):
        return name
    candidates = (name, name.partition("=")[2], name.partition(":")[0])
    return next((text for text in candidates if text and Path(text).exists()), None)


def _files_of(path: Path) -> Iterator[Path]:
    """The files of a model, a cache or a data set, without cards, logs and checkpoints."""
    if path.is_file():
        yield path
        return
    for file in sorted(path.iterdir()):
        if not file.name.startswith((".", "checkpoint-")) and file.name not in ("runs", "README.md", "__pycache__"):
            yield from _files_of(file)
