"""Plan: what a build will write, its sha256, and its JSON form (plan.json, and inside manifest.json).

What takes a pass over all shards of a plan is computed once.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from shards.errors import CacheDamaged
from shards.format import schema
from shards.format.nodes import StrengthNodes
from shards.format.schema import FORMAT_NAME, FORMAT_VERSION, VALUES, Column, Level, Pair, Role, Values

MAX_VALUES = 2**31 - 1
"""Of a column in a record batch: its row offsets are int32."""


def shard_file(number: int) -> str:
    """The name of a shard."""
    return f"part-{number:05d}.arrow"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """One shard: its file, its first row in the cache, its rows and their response positions."""

    file: str
    first_row: int
    rows: int
    positions: int

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ShardPlan":
        first_row, rows, positions = int(data["first_row"]), int(data["rows"]), int(data["positions"])
        return cls(file=str(data["file"]), first_row=first_row, rows=rows, positions=positions)

    def to_json(self) -> dict[str, Any]:
        # written out, as below: a cache of many shards spends its opening here
        return {"file": self.file, "first_row": self.first_row, "rows": self.rows, "positions": self.positions}


@dataclass(frozen=True, kw_only=True)  # without slots: cached properties need __dict__
class Plan:
    """What a build will write; a pure function of models, data and options.

    identity        nested mapping of everything that the bytes depend on: models, tokenizer, data, options, numerics
    index_sha256    of `index.arrow`, the lengths and pairs of all rows
    log_threshold   a token is kept if the log of its score exceeds this; None for a fixed support
    skipped         responses left out, by reason; truncated: responses cut at max_length; prompt_not_prefix: responses
                    whose prompt tokenises differently without the response
    precision       what half-precision bodies cost on a sample (`shards.teacher.precision`); None for float32 bodies,
                    and then not stored
    tokenizer_sha256   of `tokenizer.json`, for showing text; None without one, and then not stored
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
    index_sha256: str
    shards: tuple[ShardPlan, ...]
    precision: Mapping[str, Any] | None = None
    tokenizer_sha256: str | None = None

    @cached_property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def num_batches(self, shard: int) -> int:
        """The number of record batches of a shard: rows_per_batch rows each, the last one fewer."""
        return -(-self.shards[shard].rows // self.rows_per_batch)

    def num_rows(self, shard: int, batch: int) -> int:
        """The number of rows of one record batch."""
        return min(self.rows_per_batch, self.shards[shard].rows - batch * self.rows_per_batch)

    def first_row(self, shard: int, batch: int) -> int:
        """The cache's row number of a record batch's first row."""
        return self.shards[shard].first_row + batch * self.rows_per_batch

    def most_values(self, shard: int, batch: int, entries: int | None = None) -> dict[Level, int]:
        """The most values that a record batch can have at each level; for the rows, how many it has.

        entries: the kept tokens of its shard, if they are known.
        """
        planned, rows = self.shards[shard], self.num_rows(shard, batch)
        positions = planned.positions - (planned.rows - rows)  # the other rows have one or more
        found: dict[Level, int] = {
            "row": rows,
            "token": rows * self._max_tokens,
            "position": positions,
            "node": positions * (len(self.nodes) - 1),
            "entry": positions * self.vocabulary_size if entries is None else entries,
        }
        return {level: min(number, MAX_VALUES) for level, number in found.items()}

    @cached_property
    def _max_tokens(self) -> int:
        """The most tokens of a row: max_length, if it is among the recorded options."""
        options = self.identity.get("options")
        found = options.get("max_length") if isinstance(options, Mapping) else None
        return found if isinstance(found, int) and found > 0 else MAX_VALUES

    @cached_property
    def positions(self) -> int:
        return sum(shard.positions for shard in self.shards)

    def columns(self, roles: Iterable[Role] | None = None, pairs: Iterable[Pair] | None = None) -> tuple[Column, ...]:
        """The columns that hold the values of these roles and pairs (default: all).

        Compact values of one role need those of other roles.
        """
        if roles is None and pairs is None:
            return self._all_columns
        return self._columns(roles, pairs)

    @cached_property
    def _all_columns(self) -> tuple[Column, ...]:
        return self._columns(None, None)

    def _columns(self, roles: Iterable[Role] | None, pairs: Iterable[Pair] | None) -> tuple[Column, ...]:
        read = self.roles if roles is None or self.values == "compact" else roles
        return schema.columns(read, self.pairs if pairs is None else pairs, self.values)

    @cached_property
    def arrow_schema(self) -> pa.Schema:
        """The schema of every shard: all columns, and the build in the metadata."""
        return schema.arrow_schema(self.columns(), build_sha256=self.sha256)

    @property
    def unit_negative(self) -> Role:
        """The negative whose D_t sets the unit of compact values: reverse if it was scored."""
        return next(negative for negative in schema.NEGATIVES if negative in self.roles)

    def tail_columns(self) -> tuple[str, ...]:
        """The columns that `shards.format.encoding.codec.decode_tails` reads."""
        return self._of_roles(schema.tail_logprob_column, schema.tail_code_column)

    def next_columns(self) -> tuple[str, ...]:
        """The columns that `shards.format.encoding.codec.decode_next` reads."""
        return self._of_roles(schema.next_logprob_column, schema.next_code_column)

    def _of_roles(self, exact: Callable[[Role], str], code: Callable[[Role], str]) -> tuple[str, ...]:
        """The columns with one value of every role, and what decoding them needs."""
        if self.values == "float32":
            return tuple(map(exact, self.roles))
        split = (part(name) for name in map(code, self.roles) for part in (schema.low, schema.high))
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
            "index_sha256": self.index_sha256,
            **({} if self.precision is None else {"precision": dict(self.precision)}),
            **({} if self.tokenizer_sha256 is None else {"tokenizer_sha256": self.tokenizer_sha256}),
            "shards": [shard.to_json() for shard in self.shards],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> "Plan":
        """Read what `to_json` wrote. Raises CacheDamaged, naming the file and what is wrong."""
        require_format(data, where)
        if data.get("values") not in VALUES:
            raise CacheDamaged(f"{where}: expected values stored as {' or '.join(VALUES)}, got {data.get('values')!r}")
        try:
            plan = cls(
                identity=dict(data["identity"]),
                roles=_texts(data["roles"]),
                pairs=tuple(map(Pair.parse, _texts(data["pairs"]))),
                nodes=StrengthNodes(gains=tuple(data["gain_nodes"]), strengths=tuple(data["strength_nodes"])),
                vocabulary_size=int(data["vocabulary_size"]),
                values=data["values"],
                rows_per_batch=int(data["rows_per_batch"]),
                log_threshold=None if data["log_threshold"] is None else float(data["log_threshold"]),
                skipped=dict(data["skipped"]),
                truncated=int(data["truncated"]),
                prompt_not_prefix=int(data["prompt_not_prefix"]),
                index_sha256=str(data["index_sha256"]),
                shards=tuple(ShardPlan.from_json(shard) for shard in data["shards"]),
                precision=None if data.get("precision") is None else dict(data["precision"]),
                tokenizer_sha256=None if data.get("tokenizer_sha256") is None else str(data["tokenizer_sha256"]),
            )
            plan.sha256  # noqa: B018 - JSON has no NaN, which a text may become
        except (KeyError, TypeError, ValueError, ArithmeticError) as exc:
            raise CacheDamaged(f"{where}: expected a plan of format version {FORMAT_VERSION}, got {exc!r}") from exc
        for fault in plan.faults():
            raise CacheDamaged(f"{where}: {fault}")
        return plan

    def faults(self) -> Iterator[str]:
        """What no build can have planned, in words. Readers rely on these rules; no shard's name may lead out of the
        folder."""
        needed = {*schema.REQUIRED_ROLES, *(pair.negative for pair in self.pairs)}
        legal = {
            "roles": needed <= set(self.roles) <= set(schema.ROLES) and len(set(self.roles)) == len(self.roles),
            "pairs": len(set(self.pairs)) == len(self.pairs) > 0,
            "vocabulary_size": self.vocabulary_size >= 1,
            "rows_per_batch": self.rows_per_batch >= 1,
            "shards": len(self.shards) >= 1,
        }
        for name in (name for name, holds in legal.items() if not holds):
            yield f"{name}: expected a legal value, got {self.to_json()[name]}"
        first_row = 0
        for i, shard in enumerate(self.shards):
            file = shard_file(i)
            if (shard.file, shard.first_row) != (file, first_row) or not 1 <= shard.rows <= shard.positions:
                yield f"shards: expected {file} from row {first_row}, got {shard}"
            first_row += shard.rows

    @cached_property
    def sha256(self) -> str:
        """Identity of the build; every shard has it in its metadata."""
        return json_sha256(self.to_json())


def _texts(values: Any) -> tuple[Any, ...]:
    if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
        raise TypeError(f"{values!r:.80} where a list of texts belongs")
    return tuple(values)


def require_format(data: Mapping[str, Any], where: str) -> None:
    for name, expected in (("format", FORMAT_NAME), ("format_version", FORMAT_VERSION)):
        if data.get(name) != expected:
            raise CacheDamaged(f"{where}: expected {name} {expected!r}, got {data.get(name)!r}")


def json_sha256(value: Any) -> str:
    """sha256, in hex, of the canonical text of a JSON value."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def canonical_json(value: Any) -> bytes:
    """The canonical text of a JSON value, for hashes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
