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
from shards.errors import CacheConflict, CacheDamaged, CacheMissing
from shards.files import Sums, read_regular
from shards.format.encoding.seal import SEAL_KEYS, check_seal
from shards.format.plan import Plan, json_sha256, require_format

PLAN_FILE = "plan.json"
MANIFEST_FILE = "manifest.json"
VOCABULARY_FILE = "vocabulary.json"
TOKENIZER_FILE = "tokenizer.json"
PROVENANCE_FILE = "provenance.json"
INDEX_FILE = "index.arrow"
SHARD_GLOB = "part-*.arrow"
MAX_JSON_BYTES = 2**29
"""A manifest of two million shards has as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One finished shard: its file, its kept tokens, its size and its sums. crc32: None in older caches."""

    file: str
    entries: int
    bytes: int
    sha256: str
    crc32: int | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ShardEntry":
        entries, size, crc32 = int(data["entries"]), int(data["bytes"]), data.get("crc32")
        crc32 = None if crc32 is None else int(crc32)
        return cls(file=str(data["file"]), entries=entries, bytes=size, sha256=str(data["sha256"]), crc32=crc32)

    def to_json(self) -> dict[str, Any]:
        sums = {"bytes": self.bytes, "sha256": self.sha256}
        return {"file": self.file, "entries": self.entries, **sums} | (
            {} if self.crc32 is None else {"crc32": self.crc32}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A finished cache: its plan, an entry for every planned shard in order, and statistics of the values.

    files: the sums of the files beside the shards (`covered`); None in older caches, whose manifest has no seal either.
    """

    plan: Plan
    entries: tuple[ShardEntry, ...]
    statistics: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Sums] | None = None

    def to_json(self) -> dict[str, Any]:
        merged = self.plan.to_json()
        merged["build_sha256"] = self.plan.sha256
        merged["shards"] = [
            planned.to_json() | entry.to_json() for planned, entry in zip(self.plan.shards, self.entries, strict=True)
        ]
        files = {} if self.files is None else {"files": {name: sums._asdict() for name, sums in self.files.items()}}
        return merged | files | {"statistics": dict(self.statistics)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> "Manifest":
        """Read what `to_json` wrote. Raises CacheDamaged, naming the file and what is wrong."""
        require_format(data, where)
        try:
            entries = tuple(map(ShardEntry.from_json, data["shards"]))
            statistics = {name: dict(numbers) for name, numbers in data["statistics"].items()}
            if not statistics or not all(isinstance(n, (int, float)) for s in statistics.values() for n in s.values()):
                raise ValueError("statistics that are no numbers")
            build_sha256, found = data["build_sha256"], data.get("files")
            files = None if found is None else {name: Sums.from_json(sums) for name, sums in found.items()}
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as exc:
            raise CacheDamaged(f"{where}: expected a table of shards and statistics, got {exc!r}") from exc
        plan = Plan.from_json(data, where)  # takes only its own fields of a shard
        if plan.sha256 != build_sha256:
            raise CacheDamaged(f"{where}: expected build_sha256 {build_sha256}, got {plan.sha256} from its fields")
        manifest = cls(plan=plan, entries=entries, statistics=statistics, files=files)
        _require_exact(data, manifest.to_json(), where)
        if files is not None and set(files) != set(covered(plan)):
            raise CacheDamaged(f"{where}: files: expected {', '.join(covered(plan))}, got {', '.join(files)}")
        return manifest


def covered(plan: Plan) -> tuple[str, ...]:
    """The files beside the shards that have sums in the manifest: not provenance.json, on which no byte depends."""
    return (PLAN_FILE, INDEX_FILE, VOCABULARY_FILE, *(() if plan.tokenizer_sha256 is None else (TOKENIZER_FILE,)))


def read_json(path: Path, where: str | None = None) -> dict[str, Any]:
    """The JSON object in a file. Raises CacheMissing without the file and CacheDamaged if it holds anything else.

    where: what messages call the file; default: its path.
    """
    return parse_json(_read(path, where or str(path)), where or str(path))


def _read(path: Path, where: str) -> bytes:
    try:
        return read_regular(path, MAX_JSON_BYTES)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise CacheMissing(f"{path.parent}: expected a cache, found no {path.name}") from exc
    except OSError as exc:
        raise CacheDamaged(f"{where}: expected a readable file, got {exc.strerror}") from exc


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
    data, is_sealed = _read_sealed(path, where)
    manifest = Manifest.from_json(data, where)
    summed = {entry.crc32 is not None for entry in manifest.entries} | {manifest.files is not None}
    if summed != {is_sealed}:
        raise CacheDamaged(f"{where}: expected files, crc32 of shards and a content_sha256, or none of them, got some")
    return manifest


def read_provenance(folder: Path, name: str | None = None) -> dict[str, Any]:
    """The paths of models and data. Raises CacheMissing, CacheDamaged. name: what messages call the folder."""
    where = f"{name or folder}/{PROVENANCE_FILE}"
    found, _ = _read_sealed(folder / PROVENANCE_FILE, where)
    for key in found.keys() - {"models", "data"}:  # such as an altered seal
        raise CacheDamaged(f"{where}: expected models and data, got {key!a}")
    return found


def _read_sealed(path: Path, where: str) -> tuple[dict[str, Any], bool]:
    return unsealed(_read(path, where), where)


def unsealed(content: bytes, where: str) -> tuple[dict[str, Any], bool]:
    """The JSON object in the content of a file, without its seal, and whether it has one. Raises CacheDamaged."""
    is_sealed, data = check_seal(content, where), parse_json(content, where)
    return {key: value for key, value in data.items() if not (is_sealed and key in SEAL_KEYS)}, is_sealed


def read_vocabulary(folder: Path, manifest: Manifest, name: str | None = None) -> dict[str, int]:
    """The token-to-id map. Raises CacheMissing, CacheDamaged if it is not the manifest's or no map. name: as above."""
    where = f"{name or folder}/{VOCABULARY_FILE}"
    content = _read(folder / VOCABULARY_FILE, where)
    if manifest.files is None:
        found = parse_json(content, where)
        expected = vocabulary_sha256(manifest.plan)
        sha256 = json_sha256(found) if expected else None
    else:
        expected, sha256 = manifest.files[VOCABULARY_FILE].sha256, hashlib.sha256(content).hexdigest()
    if sha256 != expected:
        raise CacheDamaged(f"{where}: expected a map with sha256 {expected}, got {sha256}")
    found = parse_json(content, where)
    for token, token_id in found.items():
        if type(token_id) is not int:
            raise CacheDamaged(f"{where}: expected a number for each token, got {token_id!r:.40} for {token!r:.40}")
    return found


def vocabulary_sha256(plan: Plan) -> str | None:
    """Of the canonical JSON of the token-to-id map, as the identity has it."""
    tokenizer = plan.identity.get("tokenizer")
    return tokenizer.get("vocabulary_sha256") if isinstance(tokenizer, Mapping) else None


def require_files(manifest: Manifest, sizes: Mapping[str, int], where: str) -> None:
    """Raise CacheMissing, CacheDamaged unless every shard is among the files of a place, with its recorded bytes.

    sizes: name -> bytes.
    """
    for entry in manifest.entries:
        if entry.file not in sizes:
            raise CacheMissing(f"{where}/{entry.file}: expected a shard of {entry.bytes} bytes, found no file")
        if sizes[entry.file] != entry.bytes:
            raise CacheDamaged(f"{where}/{entry.file}: expected {entry.bytes} bytes, got {sizes[entry.file]}")


def read_plan(path: Path) -> Plan:
    """The plan in a file of a begun or finished build. Raises CacheMissing, CacheDamaged."""
    return plan_of(_read(path, str(path)), str(path))


def plan_of(content: bytes, where: str) -> Plan:
    """The plan in the content of a file. Raises CacheDamaged."""
    data, _ = unsealed(content, where)
    plan = Plan.from_json(data, where)
    _require_exact(data, plan.to_json(), where)
    return plan


def read_tokenizer(folder: Path, plan: Plan, name: str | None = None) -> str | None:
    """The content of tokenizer.json; None if the cache has none: it is older, or its tokenizer has no such form.

    name: what messages call the folder; default: its path. Raises CacheMissing without the file that the plan names,
    CacheDamaged if it differs from the plan's sha256.
    """
    if plan.tokenizer_sha256 is None:
        return None
    where = f"{name or folder}/{TOKENIZER_FILE}"
    content = _read(folder / TOKENIZER_FILE, where)
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
