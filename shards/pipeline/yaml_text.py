"""Reads YAML with every scalar as the text that was typed: `no`, `1e-6` and `010` stay as they are."""

from pathlib import Path
from typing import Any

import yaml

from shards.errors import OptionError
from shards.files import read_regular

MAX_BYTES, MAX_VALUES, MAX_LEVELS = 2**20, 10_000, 100


def load_yaml(file: Path) -> Any:
    """Texts, lists and mappings. Raises OptionError in one line."""
    try:
        return yaml.load(read_regular(file, MAX_BYTES).decode("utf-8"), Loader=_Loader)
    except OSError as exc:
        raise OptionError(f"{file}: expected a YAML file, got {exc.strerror}") from exc
    except yaml.MarkedYAMLError as exc:
        line = f" in line {exc.problem_mark.line + 1}" if exc.problem_mark else ""
        raise OptionError(f"{file}: expected YAML, got {exc.problem}{line}") from exc
    except (yaml.YAMLError, ValueError) as exc:
        raise OptionError(f"{file}: expected YAML, got bytes that are none") from exc


class _Loader(yaml.BaseLoader):
    """Texts, lists and mappings only. A repeated key is an error; PyYAML would keep the last one.

    So are aliases that stand for more than MAX_VALUES values: ten lines of them can be more than any memory holds.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values = self._level = 0
        self._inside: dict[int, int] = {}  # id of a node -> values in it, once it is whole

    def compose_node(self, parent: Any, index: Any) -> Any:
        before, mark = self._values, self.peek_event().start_mark
        is_alias = self.check_event(yaml.AliasEvent)
        self._level += 1
        if self._level > MAX_LEVELS:
            raise yaml.composer.ComposerError(None, None, f"more than {MAX_LEVELS} levels", mark)
        node = super().compose_node(parent, index)
        self._level -= 1
        self._values += self._inside.get(id(node), MAX_VALUES) if is_alias else 1  # an alias may be inside of itself
        if self._values > MAX_VALUES:
            raise yaml.composer.ComposerError(None, None, f"more than {MAX_VALUES:,} values", mark)
        self._inside[id(node)] = self._values - before
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} a second time", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)
