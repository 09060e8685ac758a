"""The file of `python -m shards.pipeline`: YAML -> steps. Nothing is run here.

    out: runs/first                 the folder of the record; like any other name here, $out stands for it further down
    data: pairs.jsonl
    steps:
      - name: teachers
        run: precompute.teachers
        launch: torchrun --nproc_per_node 8         # optional
        flags: {reference: REFERENCE_DIR, data: $data, out: $out/models}

Flags are the command's own. A scalar is its text, as on a command line: `no` and `1e-6` are what they
look like. A list is several values, a flag without a value is given without one.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import OptionError
from shards.pipeline.step import COMMANDS, Step
from shards.pipeline.yaml_text import load_yaml


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    out: Path
    steps: tuple[Step, ...]


def read_pipeline(file: Path) -> Pipeline:
    """Read and check the file. Raises OptionError if it is not YAML, or if two steps share a name or an output."""
    given = _mapping(load_yaml(file), f"{file}")
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
    """The names at the top of the file, and which of them are used."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.values: dict[str, str] = {}
        self.used: set[str] = set()

    def define(self, name: str, value: Any) -> None:
        if not (name.isidentifier() and name.isascii() and isinstance(value, str) and value):
            raise OptionError(f"{self.where}: {name}: expected a name and a text, got {value!r}")
        self.values[name] = self.fill(value, f"{self.where}: {name}")

    def fill(self, text: str, where: str) -> str:
        """The text with every $name replaced; $$ is a dollar. Raises OptionError for an unknown name."""
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
    module = _text(given.get("run"), f"{where}.run")
    if module not in COMMANDS:
        raise OptionError(f"{where}.run: expected one of {', '.join(COMMANDS)}, got {module!r}")
    flags = _flags(given.get("flags"), f"{where}.flags", names)
    command = COMMANDS[module]
    for name in (command.output, *command.needs):
        if not flags.get(name) or (name == command.output and len(flags[name]) > 1):
            raise OptionError(f"{where}.flags: expected {name} with a path, got {list(flags.get(name, ()))}")
    launch = _text(given["launch"], f"{where}.launch") if "launch" in given else ""
    return Step(
        name=_text(given.get("name"), f"{where}.name"),
        module=module,
        launch=tuple(names.fill(launch, f"{where}.launch").split()),
        flags=flags,
    )


def _flags(given: Any, where: str, names: _Names) -> dict[str, tuple[str, ...]]:
    """The values of each flag, under its name with underscores."""
    flags: dict[str, tuple[str, ...]] = {}
    for name, value in _mapping(given, where).items():
        values = value if isinstance(value, list) else [value] if value else []
        if not all(isinstance(text, str) for text in values):
            raise OptionError(f"{where}.{name}: expected a text or a list of texts (JSON in quotes), got {value!r}")
        if (spelled := name.replace("-", "_")) in flags:
            raise OptionError(f"{where}.{name}: expected a flag once, got it in both spellings")
        flags[spelled] = tuple(names.fill(text, f"{where}.{name}") for text in values)
    return flags


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
