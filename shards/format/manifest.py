"""The manifest of a finished cache, and how a folder without one, or with a damaged one, is refused.

`plan.json` is written before the work: identity, the support's threshold and the shard boundaries. `manifest.json` is
written last, when every shard is in place: the plan, with bytes and sha256 of each shard and the statistics. Without
a manifest there is no cache. `vocabulary.json` has the token-to-id map, `provenance.json` the paths, which are not part
of the identity. `tokenizer.json` is for showing text; nothing else depends on it. `index.arrow`
(`shards.format.index`) has the lengths and pairs of all rows.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards import strict_json
from shards.errors import CacheConflict, CacheDamaged, CacheMissing, first_line
from shards.files import read_regular
from shards.format.plan import Plan, require_format

PLAN_FILE = "plan.json"
MANIFEST_FILE = "manifest.json"
VOCABULARY_FILE = "vocabulary.json"
TOKENIZER_FILE = "tokenizer.json"
PROVENANCE_FILE = "provenance.json"
SHARD_GLOB = "part-*.arrow"
MAX_JSON_BYTES = 2**29
"""A manifest of two million shards has as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One finished shard: its file, its kept tokens, its size and its sha256."""

    file: str
    entries: int
    bytes: int
    sha256: str

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ShardEntry":
        entries, size = int(data["entries"]), int(data["bytes"])
        return cls(file=str(data["file"]), entries=entries, bytes=size, sha256=str(data["sha256"]))

    def to_json(self) -> dict[str, Any]:
        return {"file": self.file, "entries": self.entries, "bytes": self.bytes, "sha256": self.sha256}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A finished cache: its plan, an entry for every planned shard in order, and statistics of the values."""

    plan: Plan
    entries: tuple[ShardEntry, ...]
    statistics: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        merged = self.plan.to_json()
        merged["build_sha256"] = self.plan.sha256
        merged["shards"] = [
            planned.to_json() | entry.to_json() for planned, entry in zip(self.plan.shards, self.entries, strict=True)
        ]
        return merged | {"statistics": dict(self.statistics)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> "Manifest":
        require_format(data, where)
        try:
            entries = tuple(map(ShardEntry.from_json, data["shards"]))
            statistics = {name: dict(numbers) for name, numbers in data["statistics"].items()}
            if not statistics or not all(isinstance(n, (int, float)) for s in statistics.values() for n in s.values()):
                raise ValueError("statistics that are no numbers")
            build_sha256 = data["build_sha256"]
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as exc:
            raise CacheDamaged(f"{where}: expected a table of shards and statistics, got {exc!r}") from exc
        plan = Plan.from_json(data, where)  # takes only its own fields of a shard
        if plan.sha256 != build_sha256:
            raise CacheDamaged(f"{where}: expected build_sha256 {build_sha256}, got {plan.sha256} from its fields")
        manifest = cls(plan=plan, entries=entries, statistics=statistics)
        _require_exact(data, manifest.to_json(), where)
        return manifest


def read_json(path: Path, where: str | None = None) -> dict[str, Any]:
    """The JSON object in a file. Raises CacheMissing without the file and CacheDamaged if it holds anything else.

    where: what messages call the file; default: its path.
    """
    try:
        content = read_regular(path, MAX_JSON_BYTES)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise CacheMissing(f"{path.parent}: expected a cache, found no {path.name}") from exc
    except OSError as exc:
        raise CacheDamaged(f"{where or path}: expected JSON, got {exc.strerror}") from exc
    return parse_json(content, where or str(path))


def parse_json(content: bytes, where: str) -> dict[str, Any]:
    """The JSON object in these bytes. Raises CacheDamaged if they hold anything else."""
    try:
        data = strict_json.loads(content)
    except ValueError as exc:
        raise CacheDamaged(f"{where}: expected JSON, got {exc}") from exc
    if not isinstance(data, dict):
        raise CacheDamaged(f"{where}: expected a JSON object, got {type(data).__name__}")
    return data


def read_manifest(folder: Path, name: str | None = None) -> Manifest:
    """The manifest of a finished cache. Raises CacheMissing, saying whether a build was started there.

    name: what messages call the folder; default: its path.
    """
    path, where = folder / MANIFEST_FILE, f"{name or folder}/{MANIFEST_FILE}"
    if not path.exists() and (folder / PLAN_FILE).exists():
        raise CacheMissing(f"{folder}: expected a finished cache, found a build that was begun; run it again to finish")
    return Manifest.from_json(read_json(path, where), where)


def require_files(manifest: Manifest, sizes: Mapping[str, int], where: str) -> None:
    """Raise CacheMissing, CacheDamaged unless every shard is among the files of a place, with its recorded bytes.

    sizes: name -> bytes.
    """
    for entry in manifest.entries:
        if entry.file not in sizes:
            raise CacheMissing(f"{where}/{entry.file}: expected a shard of {entry.bytes} bytes, found no file")
        if sizes[entry.file] != entry.bytes:
            raise CacheDamaged(f"{where}/{entry.file}: expected {entry.bytes} bytes, got {sizes[entry.file]}")


def read_vocabulary(path: Path, where: str | None = None) -> dict[str, int]:
    """The token-to-id map in a file. Raises as `read_json`, and CacheDamaged for ids that are no whole numbers."""
    found = read_json(path, where)
    if not all(type(token_id) is int for token_id in found.values()):
        token = next(token for token, token_id in found.items() if type(token_id) is not int)
        raise CacheDamaged(
            f"{where or path}: expected a number for each token, got {found[token]!r:.40} for {token!r:.40}"
        )
    return found


def read_plan(path: Path) -> Plan:
    """The plan in a file of a begun or finished build. Raises CacheMissing, CacheDamaged."""
    data = read_json(path)
    plan = Plan.from_json(data, str(path))
    _require_exact(data, plan.to_json(), str(path))
    return plan


def read_tokenizer(folder: Path, plan: Plan, name: str | None = None) -> str | None:
    """The content of tokenizer.json; None if the cache has none: it is older, or its tokenizer has no such form.

    name: what messages call the folder; default: its path. Raises CacheMissing without the file that the plan names,
    CacheDamaged if it differs from the plan's sha256.
    """
    if plan.tokenizer_sha256 is None:
        return None
    where = f"{name or folder}/{TOKENIZER_FILE}"
    try:
        content = read_regular(folder / TOKENIZER_FILE, MAX_JSON_BYTES)
    except FileNotFoundError as exc:
        raise CacheMissing(f"{name or folder}: expected a cache, found no {TOKENIZER_FILE}") from exc
    except OSError as exc:
        raise CacheDamaged(f"{where}: expected a readable file, got {first_line(exc)}") from exc
    if (found := hashlib.sha256(content).hexdigest()) != plan.tokenizer_sha256:
        raise CacheDamaged(f"{where}: expected sha256 {plan.tokenizer_sha256}, got {found}")
    try:
        return content.decode()
    except UnicodeDecodeError as exc:
        raise CacheDamaged(f"{where}: expected text in UTF-8, got {exc}") from exc


def _require_exact(found: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """Raise CacheDamaged if a file has keys outside its format, or sums that are not those of its shards."""
    for name, old, new in differences(found, expected):
        raise CacheDamaged(f"{where}: {name}: expected {new}, got {old}")


def refuse_difference(found: Mapping[str, Any], asked: Mapping[str, Any], where: str) -> None:
    """Raise CacheConflict naming the first field, in the order of `asked`, that differs between two identities."""
    for field_name, old, new in differences(found, asked):
        raise CacheConflict(f"{where}, {field_name}: expected {old}, got {new}")


def differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, str, str]]:
    """(field, old, new) for each difference of two nested mappings, values as JSON; tables are compared by entry."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in {**new, **old}:
            inner = f"{name}.{key}" if name else key
            yield from differences(old.get(key), new.get(key), inner)
    elif old != new and _is_table(old) and _is_table(new):  # such as the shards: too long for one line
        if len(old) != len(new):
            yield name, f"{len(old)} entries", f"{len(new)} entries"
        for i, (ours, theirs) in enumerate(zip(old, new, strict=False)):
            yield from differences(ours, theirs, f"{name}[{i}]")
    elif old != new:
        yield name, json.dumps(old), json.dumps(new)


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, Mapping) for entry in value)
