"""The plan of a build and the manifest of a finished cache: what it was made from, and the table of its shards.

`plan.json` is written before the work: identity, the support's threshold and the shard boundaries. `manifest.json` is
written last, when every shard lies in its place: the same, with bytes and sha256 of each shard and the statistics.
No manifest, no cache. `vocabulary.json` holds the token-to-id map; `provenance.json` holds paths, which are no part of
the identity.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shards import schema
from shards.errors import CacheConflict, CacheDamaged, CacheMissing
from shards.nodes import StrengthNodes
from shards.schema import FORMAT_NAME, FORMAT_VERSION, VALUES, Column, Pair, Role, Values
from shards.teacher import TeacherSpec

PLAN_FILE = "plan.json"
MANIFEST_FILE = "manifest.json"
VOCABULARY_FILE = "vocabulary.json"
PROVENANCE_FILE = "provenance.json"
SHARD_GLOB = "part-*.arrow"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """One shard: its file, its first row in the cache, its rows and their response positions."""

    file: str
    first_row: int
    rows: int
    positions: int

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ShardPlan":
        counts = {name: int(data[name]) for name in ("first_row", "rows", "positions")}
        return cls(file=str(data["file"]), **counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One finished shard: its plan's file, the kept tokens in it, its size and its sha256."""

    file: str
    entries: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a build will write; a pure function of models, data and options.

    identity        nested mapping of everything that the bytes depend on: models, tokenizer, data, options, numerics
    log_threshold   a token is kept where the log of its score exceeds this; None for a fixed support
    skipped         responses left out, by reason; truncated: responses cut at max_length; prompt_not_prefix: responses
                    whose prompt alone tokenises otherwise
    """

    identity: Mapping[str, Any]
    roles: tuple[Role, ...]
    pairs: tuple[Pair, ...]
    nodes: StrengthNodes
    vocabulary_size: int
    values: Values
    rows_per_batch: int
    log_threshold: float | None
    skipped: Mapping[str, int]
    truncated: int
    prompt_not_prefix: int
    shards: tuple[ShardPlan, ...]

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def num_batches(self, shard: int) -> int:
        """Record batches of a shard: rows_per_batch rows each, the last one fewer."""
        return -(-self.shards[shard].rows // self.rows_per_batch)

    def num_rows(self, shard: int, batch: int) -> int:
        """Rows of one record batch."""
        return min(self.rows_per_batch, self.shards[shard].rows - batch * self.rows_per_batch)

    def first_row(self, shard: int, batch: int) -> int:
        """The cache's row that a record batch begins with."""
        return self.shards[shard].first_row + batch * self.rows_per_batch

    @property
    def positions(self) -> int:
        return sum(shard.positions for shard in self.shards)

    def columns(self, roles: Iterable[Role] | None = None, pairs: Iterable[Pair] | None = None) -> tuple[Column, ...]:
        """The columns that hold the values of these roles and pairs (all, unless given).

        Compact values of a role lean on those of the others.
        """
        read = self.roles if roles is None or self.values == "compact" else roles
        return schema.columns(read, self.pairs if pairs is None else pairs, self.values)

    @property
    def unit_negative(self) -> Role:
        """The negative whose D_t sets the unit of compact values: reverse where it was scored."""
        return next(negative for negative in schema.NEGATIVES if negative in self.roles)

    def tail_columns(self) -> tuple[str, ...]:
        """The columns that `shards.codec.decode_tails` reads."""
        if self.values == "float32":
            return tuple(schema.tail_logprob_column(role) for role in self.roles)
        codes = [schema.tail_code_column(role) for role in self.roles]
        split = (part(name) for name in codes for part in (schema.low, schema.high))
        return (*split, schema.l1_distance_column(self.unit_negative))

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT_NAME,
            "format_version": FORMAT_VERSION,
            "identity": self.identity,
            "roles": list(self.roles),
            "pairs": [str(pair) for pair in self.pairs],
            "gain_nodes": list(self.nodes.gains),
            "strength_nodes": list(self.nodes.strengths),
            "vocabulary_size": self.vocabulary_size,
            "values": self.values,
            "rows_per_batch": self.rows_per_batch,
            "log_threshold": self.log_threshold,
            "rows": self.rows,
            "positions": self.positions,
            "skipped": dict(self.skipped),
            "truncated": self.truncated,
            "prompt_not_prefix": self.prompt_not_prefix,
            "shards": [asdict(shard) for shard in self.shards],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> "Plan":
        """Read what `to_json` wrote. Raises CacheDamaged, naming the file and what is wrong."""
        _require_format(data, where)
        if data.get("values") not in VALUES:
            raise CacheDamaged(f"{where}: expected values stored as {' or '.join(VALUES)}, got {data.get('values')!r}")
        try:
            return cls(
                identity=dict(data["identity"]),
                roles=tuple(data["roles"]),
                pairs=tuple(Pair.parse(text) for text in data["pairs"]),
                nodes=StrengthNodes(gains=tuple(data["gain_nodes"]), strengths=tuple(data["strength_nodes"])),
                vocabulary_size=int(data["vocabulary_size"]),
                values=data["values"],
                rows_per_batch=int(data["rows_per_batch"]),
                log_threshold=None if data["log_threshold"] is None else float(data["log_threshold"]),
                skipped=dict(data["skipped"]),
                truncated=int(data["truncated"]),
                prompt_not_prefix=int(data["prompt_not_prefix"]),
                shards=tuple(ShardPlan.from_json(shard) for shard in data["shards"]),
            )
        except (KeyError, TypeError, ValueError, ArithmeticError) as exc:
            raise CacheDamaged(f"{where}: expected a plan of format version {FORMAT_VERSION}, got {exc!r}") from exc

    def lacks(self, spec: TeacherSpec) -> str | None:
        """What this cache lacks for the teacher of `spec`, in words; None where it serves it."""
        return self.lacks_pair(spec) or self._lacks_strength(spec)

    def lacks_pair(self, spec: TeacherSpec) -> str | None:
        """What it lacks for the anchor and the negative of `spec`, whatever the strength."""
        missing = [r for r in dict.fromkeys((spec.anchor, "dpo", spec.negative)) if r not in self.roles]
        if missing:
            built = ", ".join(self.roles)
            return f"a teacher with {spec} needs the model {missing[0]!r}, the cache was built with {built}"
        if spec.pair not in self.pairs:
            served = ", ".join(map(str, self.pairs))
            return (
                f"a teacher with {spec} needs the pair {spec.pair}, the cache serves {served}; "
                f"build another with --pairs {' '.join(map(str, (*self.pairs, spec.pair)))}"
            )
        return None

    def _lacks_strength(self, spec: TeacherSpec) -> str | None:
        if spec.needs_fit:
            return f"a teacher with {spec} needs the two numbers of its strength; fit them with shards.preferences.fit"
        if spec.strength == "learned":
            return None  # it is bounded by the last node
        name, value, highest = (
            ("gain", spec.gain, self.nodes.gains[-1])
            if spec.strength == "adaptive"
            else ("strength beta / kl_coef", spec.constant_strength, self.nodes.strengths[-1])
        )
        flag = "gain_nodes" if spec.strength == "adaptive" else "strength_nodes"
        return (
            f"expected a {name} of {highest:g} or less, got {value:g}; build another with --{flag} that reach it"
            if value > highest
            else None
        )

    @property
    def sha256(self) -> str:
        """Identity of the build; every shard carries it."""
        return hashlib.sha256(canonical_json(self.to_json())).hexdigest()


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
            asdict(planned) | asdict(entry) for planned, entry in zip(self.plan.shards, self.entries, strict=True)
        ]
        return merged | {"statistics": dict(self.statistics)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> "Manifest":
        _require_format(data, where)
        try:
            entries = tuple(ShardEntry(**{k: s[k] for k in ShardEntry.__slots__}) for s in data["shards"])
            planned = [{k: s[k] for k in ShardPlan.__slots__} for s in data["shards"]]
            statistics = data["statistics"]
            build_sha256 = data["build_sha256"]
        except (KeyError, TypeError) as exc:
            raise CacheDamaged(f"{where}: expected a table of shards, got {exc!r}") from exc
        plan = Plan.from_json({**data, "shards": planned}, where)
        if plan.sha256 != build_sha256:
            raise CacheDamaged(f"{where}: expected build_sha256 {build_sha256}, got {plan.sha256} from its fields")
        return cls(plan=plan, entries=entries, statistics=statistics)


def _require_format(data: Mapping[str, Any], where: str) -> None:
    for name, expected in (("format", FORMAT_NAME), ("format_version", FORMAT_VERSION)):
        if data.get(name) != expected:
            raise CacheDamaged(f"{where}: expected {name} {expected!r}, got {data.get(name)!r}")


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hex, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value that hashes are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def read_json(path: Path) -> dict[str, Any]:
    """Raises CacheMissing without the file and CacheDamaged where it is not a JSON object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise CacheMissing(f"{path.parent}: expected a cache, found no {path.name}") from exc
    except (OSError, ValueError) as exc:
        raise CacheDamaged(f"{path}: expected JSON, got {exc}") from exc
    if not isinstance(data, dict):
        raise CacheDamaged(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name}, which JSON does not have")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished cache. Raises CacheMissing, saying whether a build was begun there."""
    path = folder / MANIFEST_FILE
    if not path.exists() and (folder / PLAN_FILE).exists():
        raise CacheMissing(f"{folder}: expected a finished cache, found a build that was begun; run it again to finish")
    return Manifest.from_json(read_json(path), str(path))


def refuse_difference(found: Mapping[str, Any], asked: Mapping[str, Any], where: str) -> None:
    """Raise CacheConflict naming the first field, in the order of `asked`, in which two identities differ."""
    for field_name, old, new in differences(found, asked):
        raise CacheConflict(f"{where}, {field_name}: expected {old}, got {new}")


def differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, str, str]]:
    """(field, old, new) wherever two nested mappings differ, the values as JSON."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in {**new, **old}:
            inner = f"{name}.{key}" if name else key
            yield from differences(old.get(key), new.get(key), inner)
    elif old != new:
        yield name, json.dumps(old), json.dumps(new)
