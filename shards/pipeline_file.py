"""The file of `python -m shards.pipeline`: YAML -> steps. Nothing is run here.

    out: runs/first                 the folder of the record; like any other name here, $out stands for it further down
    data: pairs.jsonl
    steps:
      - name: teachers
        run: precompute.teachers
        launch: torchrun --nproc_per_node 8         # may be left out
        flags: {reference: REFERENCE_DIR, data: $data, out: $out/models}

Flags are the command's own. A scalar is the text that stands there, as on a command line: `no` and `1e-6` are what they
look like. A list is several values, a flag without a value is given without one.
"""

import shlex
import string
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shards.errors import OptionError


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
        """Paths that are there when the step is done."""
        (path,) = self.flags[self.command.output]
        return [str(Path(path, name)) for name in self.command.made]

    @property
    def names_read(self) -> list[str]:
        """Values of the flags that say what is read: paths, hub names, role=path, file.py:function."""
        return [value for name in self.command.reads for value in self.flags.get(name, ())]

    def words(self, python: str = sys.executable) -> list[str]:
        """The command line."""
        return [*(self.launch or (python,)), "-m", self.module, *(word for flag in self.flag_words() for word in flag)]

    def flag_words(self) -> Iterator[list[str]]:
        """Each flag with its values."""
        for name, values in self.flags.items():
            yield [f"--{name}", *values]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    out: Path
    steps: tuple[Step, ...]


def read_pipeline(file: Path) -> Pipeline:
    """Raises OptionError for what is no YAML, and for a step that cannot be told apart or has no output."""
    given = _mapping(_load(file), f"{file}")
    names = _Names(str(file))
    for name, value in given.items():
        if name != "steps":
            names.define(name, value)
    if "out" not in names.values:
        raise OptionError(f"{file}: expected out, the folder of the record, got none")
    if not isinstance(given.get("steps"), list) or not given["steps"]:
        raise OptionError(f"{file}: expected a list of steps, got {given.get('steps')!r}")
    steps = tuple(_step(item, f"{file}: steps[{i}]", names) for i, item in enumerate(given["steps"]))
    _require_different([step.name for step in steps], f"{file}: expected a name of its own for each step")
    _require_different([path for step in steps for path in step.outputs], f"{file}: expected an output for each step")
    if unused := names.values.keys() - names.used - {"out"}:
        raise OptionError(f"{file}: {min(unused)}: expected a name that is used as ${min(unused)}, found no use")
    return Pipeline(out=Path(names.values["out"]), steps=steps)


class _Names:
    """The names at the top of the file, and which of them were used."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.values: dict[str, str] = {}
        self.used: set[str] = set()

    def define(self, name: str, value: Any) -> None:
        if not (name.isidentifier() and name.isascii() and isinstance(value, str) and value):
            raise OptionError(f"{self.where}: {name}: expected a name and a text, got {value!r}")
        self.values[name] = self.fill(value, f"{self.where}: {name}")

    def fill(self, text: str, where: str) -> str:
        """The text with $name replaced; $$ is a dollar. Raises OptionError for a name that is not above it."""
        template = string.Template(text)
        try:
            filled = template.substitute(self.values)
        except (KeyError, ValueError) as exc:
            known = ", ".join(f"${name}" for name in self.values) or "no name"
            raise OptionError(f"{where}: expected {known} ($$ for a dollar), got {text!r}") from exc
        self.used |= {match["named"] or match["braced"] for match in template.pattern.finditer(text)}
        return filled


def _step(item: Any, where: str, names: _Names) -> Step:
    """Check one item of the list."""
    given = _mapping(item, where)
    if wrong := given.keys() - {"name", "run", "launch", "flags"}:
        raise OptionError(f"{where}: expected name, run, launch and flags, got {min(wrong)}")
    module = given.get("run")
    if module not in COMMANDS:
        raise OptionError(f"{where}.run: expected one of {', '.join(COMMANDS)}, got {module!r}")
    flags: dict[str, tuple[str, ...]] = {}
    for name, value in _mapping(given.get("flags"), f"{where}.flags").items():
        values = value if isinstance(value, list) else [value] if value else []
        if isinstance(value, dict) or not all(isinstance(part, str) for part in values):
            raise OptionError(f"{where}.flags.{name}: expected a text or a list of them (JSON in quotes), got {value!r}")
        flags[name.replace("-", "_")] = tuple(names.fill(part, f"{where}.flags.{name}") for part in values)
    for name in (COMMANDS[module].output, *COMMANDS[module].needs):
        if not flags.get(name) or (name == COMMANDS[module].output and len(flags[name]) > 1):
            raise OptionError(f"{where}.flags.{name}: expected a path, got {flags.get(name)}")
    return Step(
        name=_text(given.get("name"), f"{where}.name"),
        module=module,
        launch=tuple(shlex.split(names.fill(_text(given.get("launch", "python"), f"{where}.launch"), where)))
        if "launch" in given
        else (),
        flags=flags,
    )


def _load(file: Path) -> Any:
    try:
        return yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as exc:
        raise OptionError(f"{file}: expected a YAML file, got {exc.strerror}") from exc
    except yaml.MarkedYAMLError as exc:
        line = f" in line {exc.problem_mark.line + 1}" if exc.problem_mark else ""
        raise OptionError(f"{file}: expected YAML, got {exc.problem}{line}") from exc
    except (yaml.YAMLError, ValueError) as exc:
        raise OptionError(f"{file}: expected YAML, got bytes that are none") from exc


class _Loader(yaml.BaseLoader):
    """Texts, lists and mappings only; and no key twice, of which PyYAML would keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} a second time", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise OptionError(f"{where}: expected a mapping, got {value!r}")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise OptionError(f"{where}: expected a text, got {value!r}")
    return value


def _require_different(names: Sequence[str], expected: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f"{expected}, got {name} twice")
