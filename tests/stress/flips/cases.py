"""The damages beside single bits: pages, lengths, whole files, fields of JSON files. Each names new contents."""

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from shards.format.encoding.seal import SEAL_KEYS
from shards.format.writer import json_bytes

Content = Mapping[str, bytes]


class Damage(NamedTuple):
    """files: name -> new content, a JSON value to be written, or None for a missing file. kind: for the counts."""

    kind: str
    files: dict[str, Any]

    def contents(self) -> Iterator[tuple[str, bytes | None]]:
        for file, new in self.files.items():
            yield file, new if new is None or isinstance(new, bytes) else json_bytes(new)


def damages(content: Content, other: Content) -> list[Damage]:
    """All of them. other: the files of another build."""
    return [*pages(content), *lengths(content), *whole_files(content, other), *edits(content)]


def pages(content: Content) -> Iterator[Damage]:
    for size in (512, 4096):
        for file, old in content.items():
            for start in range(0, len(old), size):
                end = min(len(old), start + size)
                new = old[:start] + bytes(end - start) + old[end:]
                if new != old:
                    yield Damage(f"zeroed {size} bytes", {file: new})


def lengths(content: Content) -> Iterator[Damage]:
    for file, old in content.items():
        for length in sorted({*range(0, len(old), 61), *range(max(0, len(old) - 12), len(old))}):
            yield Damage("truncated", {file: old[:length]})
        for more in (b"\0", b"\n", old):
            yield Damage("longer", {file: old + more})


def whole_files(content: Content, other: Content) -> Iterator[Damage]:
    shards = [file for file in content if file.startswith("part-")]
    for first, second in itertools.permutations(shards, 2):
        yield Damage("shard duplicated over another", {first: content[second]})
        yield Damage("shards swapped", {first: content[second], second: content[first]})
    for file in content:
        yield Damage("missing", {file: None})
        if other[file] != content[file]:
            yield Damage("of another build", {file: other[file]})
    yield Damage("stale shard beside", {"part-00007.arrow": content[shards[0]]})


def edits(content: Content) -> Iterator[Damage]:
    """Every field of every JSON file changed, removed, added, of another type; written as an editor would."""
    for file in (file for file in content if file.endswith(".json")):
        value = json.loads(content[file])
        for edited in edited_values(value):
            yield Damage(f"{file} edited", {file: edited})
        unsealed = {key: old for key, old in value.items() if key not in SEAL_KEYS}
        if unsealed != value:
            yield Damage(f"{file} edited", {file: unsealed})
        yield Damage(f"{file} edited", {file: json.dumps(value).encode()})
        yield Damage(f"{file} edited", {file: content[file].replace(b"\n", b"\r\n")})


def edited_values(value: Any) -> Iterator[Any]:
    """A JSON value with one leaf or member changed."""
    if isinstance(value, dict):
        for key, old in value.items():
            for new in edited_values(old):
                yield {**value, key: new}
            yield {name: old for name, old in value.items() if name != key}
            yield {(f"{name}_" if name == key else name): old for name, old in value.items()}
        yield {**value, "surplus": 1}
        if not value:
            return
        yield [value]
    elif isinstance(value, list):
        for i, old in enumerate(value):
            yield from ([*value[:i], new, *value[i + 1 :]] for new in edited_values(old))
            yield [*value[:i], *value[i + 1 :]]
        yield [*value, *value[-1:]] if value else [1]
        yield {"0": value}
    else:
        yield from leaf_edits(value)


def leaf_edits(value: Any) -> Iterator[Any]:
    others: list[Any] = [None, "text", 7, -1, 0.5, True, [], {}, "", 2**63, 1e308]
    if isinstance(value, str):
        others += [value[:-1], f"{value} ", value.swapcase()]
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        others += [value + 1, value - 1, -value, str(value)]
    yield from (new for new in others if type(new) is not type(value) or new != value)
