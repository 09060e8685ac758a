"""Reads YAML with every scalar as the text that was typed: `no`, `1e-6` and `010` stay as they are."""

from pathlib import Path
from typing import Any

import yaml

from shards.errors import OptionError


def load_yaml(file: Path) -> Any:
    """Texts, lists and mappings. Raises OptionError in one line."""
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
    """Texts, lists and mappings only. A repeated key is an error; PyYAML would keep the last one."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} a second time", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)
