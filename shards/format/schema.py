"""The columns of a shard: every column's name, type and meaning. No other file writes a name.

A row is one response. Its values are in flat list columns; a column's `level` says what one value belongs to:

    row        one value
    token      one per input token                                        T values
    position   one per response position (a token whose mask is true)     N values
    node       one per position and strength node above zero              N x (J - 1) values, position-major
    entry      one per kept token of each position                        M = sum of support_count values

`docs/format.md` explains every column for readers that have only pyarrow.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import pyarrow as pa

from shards.errors import OptionError

FORMAT_NAME = "aligndistil-cache"
FORMAT_VERSION = 3

Values = Literal["compact", "float32"]
Role = Literal["dpo", "reverse", "reference"]
Level = Literal["row", "token", "position", "node", "entry"]

VALUES: tuple[Values, ...] = ("compact", "float32")
"""How log-probs are stored: as `shards.format.encoding.compact` or as float32."""
ROLES: tuple[Role, ...] = ("dpo", "reverse", "reference")
REQUIRED_ROLES: tuple[Role, ...] = ("dpo", "reference")
ANCHORS: tuple[Role, ...] = ("dpo", "reference")
NEGATIVES: tuple[Role, ...] = ("reverse", "reference")

SAMPLE_ID = "sample_id"
PAIR_ID = "pair_id"
CHOSEN = "chosen"
RESPONSE_START = "response_start"
INPUT_IDS = "input_ids"
LOSS_MASK = "loss_mask"
SUPPORT_COUNT = "support_count"
SUPPORT_IDS = "support_ids"
SUPPORT_GAPS = "support_gaps"

CRC32_KEY = b"crc32"
"""Metadata key of a record batch: a JSON object, column name to crc32."""
FIRST_ROW_KEY = b"first_row"
"""Metadata key of a record batch: the cache's row number of its first row, in decimal digits."""
BUILD_KEY = b"build_sha256"
"""Metadata key of a shard's schema: the build (plan) that the shard is part of."""


class Pair(NamedTuple):
    """The two roles of a teacher besides dpo: `anchor + w * (dpo - negative)`. Written `anchor/negative`."""

    anchor: Role
    negative: Role

    def __str__(self) -> str:
        return f"{self.anchor}/{self.negative}"

    @classmethod
    def parse(cls, text: str) -> "Pair":
        """Read `anchor/negative`; raises OptionError on any other text."""
        for anchor in ANCHORS:
            for negative in NEGATIVES:
                if text == f"{anchor}/{negative}":
                    return cls(anchor, negative)
        legal = ", ".join(f"{a}/{n}" for a in ANCHORS for n in NEGATIVES)
        raise OptionError(f"pairs: expected anchor/negative out of {legal}, got {text!r}")


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, its level, its type, and its meaning with unit and special values."""

    name: str
    level: Level
    value_type: pa.DataType
    meaning: str

    @property
    def arrow_type(self) -> pa.DataType:
        return self.value_type if self.level == "row" else pa.list_(self.value_type)


def logprobs_column(role: Role) -> str:
    return f"{role}_logprobs"


def next_logprob_column(role: Role) -> str:
    return f"{role}_next_logprob"


def tail_logprob_column(role: Role) -> str:
    return f"{role}_tail_logprob"


def l1_distance_column(negative: Role) -> str:
    return f"l1_distance_{negative}"


def tail_logpartition_column(pair: Pair) -> str:
    return f"{pair.anchor}_{pair.negative}_tail_logpartition"


def codes_column(role: Role) -> str:
    return f"{role}_codes"


def next_code_column(role: Role) -> str:
    return f"{role}_next_code"


def tail_code_column(role: Role) -> str:
    return f"{role}_tail_code"


def tail_partition_codes_column(pair: Pair) -> str:
    return f"{pair.anchor}_{pair.negative}_tail_partition_codes"


def low(name: str) -> str:
    """The column with the lowest bytes of 24-bit numbers."""
    return f"{name}_low"


def high(name: str) -> str:
    """The column with their upper two bytes."""
    return f"{name}_high"


def columns(roles: Iterable[Role], pairs: Iterable[Pair], values: Values) -> tuple[Column, ...]:
    """All columns of a cache that holds these roles and serves these pairs, in stored order."""
    roles = [role for role in ROLES if role in set(roles)]
    per_value = _float32_columns if values == "float32" else _compact_columns
    return (
        Column(SAMPLE_ID, "row", pa.string(), "name of the response: <pair_id>/chosen, /rejected or /completion"),
        Column(PAIR_ID, "row", pa.int64(), "number of the source row, from 0; the two responses of a pair share it"),
        Column(CHOSEN, "row", pa.bool_(), "true for a chosen response and for data without pairs"),
        Column(RESPONSE_START, "row", pa.int32(), "index in input_ids of the first response token"),
        Column(INPUT_IDS, "token", pa.int32(), "prompt and response, as the models read them"),
        Column(LOSS_MASK, "token", pa.bool_(), "true where a response token's prediction is distilled"),
        Column(SUPPORT_COUNT, "position", pa.int32(), "K_t, the number of kept tokens"),
        *(
            Column(
                l1_distance_column(n),
                "position",
                pa.float32(),
                f"D_t: sum over all v of |p_dpo(v) - p_{n}(v)|, in [0, 2]",
            )
            for n in NEGATIVES
            if n in roles
        ),
        *per_value(roles, tuple(pairs)),
    )


def _float32_columns(roles: Sequence[Role], pairs: Sequence[Pair]) -> Iterator[Column]:
    f32 = pa.float32()
    for r in roles:
        yield Column(next_logprob_column(r), "position", f32, f"log-prob of the actual next token under {r}, nats")
    for r in roles:
        yield Column(tail_logprob_column(r), "position", f32, f"log of {r}'s mass outside the support; -inf: none")
    for p in pairs:
        meaning = (
            f"log sum over v outside the support of exp(l_{p.anchor} + w_j (l_dpo - l_{p.negative})) at the nodes "
            "w_1 .. w_(J-1), nats; -inf: no token outside"
        )
        yield Column(tail_logpartition_column(p), "node", f32, meaning)
    yield Column(SUPPORT_IDS, "entry", pa.int32(), "the kept token ids, ascending inside a position")
    for r in roles:
        yield Column(logprobs_column(r), "entry", f32, f"log-probs of the kept tokens under {r}, nats")


def _compact_columns(roles: Sequence[Role], pairs: Sequence[Pair]) -> Iterator[Column]:
    for r in roles:
        yield from _split(next_code_column(r), "position", f"code of the actual next token's log-prob under {r}")
    for r in roles:
        yield from _split(tail_code_column(r), "position", f"code of the log of {r}'s mass outside the support")
    for p in pairs:
        yield from _split(tail_partition_codes_column(p), "node", f"tail log partitions of {p} in steps of 2^-11 nat")
    yield from _split(SUPPORT_GAPS, "entry", "each kept token id minus the one before it in the row, modulo 2^24")
    for r in roles:
        yield from _split(codes_column(r), "entry", f"codes of the kept tokens' log-probs under {r}")


def _split(name: str, level: Level, meaning: str) -> Iterator[Column]:
    yield Column(low(name), level, pa.uint8(), f"{meaning}: lowest byte")
    yield Column(high(name), level, pa.uint16(), f"{meaning}: upper two bytes")


def arrow_schema(table: Iterable[Column], *, build_sha256: str) -> pa.Schema:
    """Arrow schema of a shard: plain non-nullable types, with the build's identity in the metadata."""
    fields = [pa.field(column.name, column.arrow_type, nullable=False) for column in table]
    return pa.schema(fields, metadata={BUILD_KEY: build_sha256.encode()})
