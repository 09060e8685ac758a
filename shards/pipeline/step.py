"""A step of a pipeline: one of the commands, its flags, and which of them are paths. Pure."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from shards.places.url import is_url


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What the pipeline knows of a command: the flags whose values are paths.

    made: what it leaves under the path that `output` names, which is that path itself unless given. needs: flags that
    have a default there and none here. overwrites: it does not look whether its output is there already.
    """

    output: str
    reads: tuple[str, ...]
    made: tuple[str, ...] = ("",)
    needs: tuple[str, ...] = ()
    overwrites: bool = False


COMMANDS = {
    "precompute.teachers": Command(output="out", reads=("reference", "data"), made=("dpo", "reverse")),
    "precompute.build": Command(output="out", reads=("models", "data")),
    "precompute.rollout": Command(output="out", reads=("model", "data")),
    "student.train": Command(output="output_dir", reads=("shards", "model", "eval_shards"), needs=("shards",)),
    "student.evaluate": Command(
        output="json",
        reads=("model", "against", "shards", "samples", "samples_against", "scorer"),
        overwrites=True,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command: module, launcher (empty: this Python) and the values of each flag."""

    name: str
    module: str
    launch: tuple[str, ...]
    flags: Mapping[str, tuple[str, ...]]

    @property
    def command(self) -> Command:
        return COMMANDS[self.module]

    @property
    def outputs(self) -> list[str]:
        """Paths and URLs that exist when the step is done."""
        (path,) = self.flags[self.command.output]
        return [f"{path}/{name}".rstrip("/") if is_url(path) else str(Path(path, name)) for name in self.command.made]

    @property
    def names_read(self) -> list[str]:
        """Values of the flags that name inputs: paths, hub names, role=path, file.py:function."""
        return [value for name in self.command.reads for value in self.flags.get(name, ())]

    def words(self, python: str = sys.executable, *, quiet: bool = False) -> list[str]:
        """The command line. quiet: with --quiet, whatever its flags say."""
        flags = [flag for flag in self.flag_words() if not (quiet and flag[0] == "--quiet")]
        words = [word for flag in [*flags, *([["--quiet"]] if quiet else [])] for word in flag]
        return [*(self.launch or (python,)), "-m", self.module, *words]

    def flag_words(self) -> Iterator[list[str]]:
        """Each flag with its values."""
        for name, values in self.flags.items():
            yield [f"--{name}", *values]
