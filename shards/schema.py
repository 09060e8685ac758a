"""The columns of a shard: the only place where a column's name is written.

A row is one response. Its values lie flat in list columns, and a column's `level` says what one value belongs to:

    row        one value
    token      one per input token                                        T values
    position   one per response position (a token whose mask is true)     N values
    node       one per position and strength node above zero              N x (J - 1) values, position-major
    entry      one per kept token of each position                        M = sum of support_count values

`docs/format.md` explains every column to a reader that has only pyarrow.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import pyarrow as pa

from shards.errors import OptionError

FORMAT_NAME = "aligndistil-cache"
FORMAT_VERSION = 1

Role = Literal["dpo", "reverse", "reference"]
Level = Literal["row", "token", "position", "node", "entry"]

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

CRC32_KEY = b"crc32"
"""Key of a record batch's metadata: a JSON object, column name to crc32."""
FIRST_ROW_KEY = b"first_row"
"""Key of a record batch's metadata: the cache's row that its first row is, in decimal digits."""
BUILD_KEY = b"build_sha256"
"""Key of a shard's schema metadata: the build (plan) that it is part of."""


class Pair(NamedTuple):
    """What a teacher is composed from besides dpo: `anchor + w * (dpo - negative)`. Written `anchor/negative`."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column: its name, what one value belongs to, its type and its meaning with unit and special values."""

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


def columns(roles: Iterable[Role], pairs: Iterable[Pair]) -> tuple[Column, ...]:
    """All columns of a cache that holds these roles and serves these pairs, in the order in which they are stored."""
    roles = [role for role in ROLES if role in set(roles)]
    f32, i32 = pa.float32(), pa.int32()

    def col(name: str, level: Level, value_type: pa.DataType, meaning: str) -> Column:
        return Column(name=name, level=level, value_type=value_type, meaning=meaning)

    return (
        col(SAMPLE_ID, "row", pa.string(), "name of the response: <pair_id>/chosen, /rejected or /completion"),
        col(PAIR_ID, "row", pa.int64(), "number of the source row, from 0; the two responses of a pair share it"),
        col(CHOSEN, "row", pa.bool_(), "true for a chosen response and for data without pairs"),
        col(RESPONSE_START, "row", i32, "index in input_ids of the first response token"),
        col(INPUT_IDS, "token", i32, "prompt and response, as the models read them"),
        col(LOSS_MASK, "token", pa.bool_(), "true where the token is a response token whose prediction is distilled"),
        col(SUPPORT_COUNT, "position", i32, "K_t, the number of kept tokens"),
        *(
            col(l1_distance_column(n), "position", f32, f"D_t: sum over all v of |p_dpo(v) - p_{n}(v)|, in [0, 2]")
            for n in NEGATIVES
            if n in roles
        ),
        *(
            col(next_logprob_column(r), "position", f32, f"log-prob of the actual next token under {r}, nats")
            for r in roles
        ),
        *(
            col(tail_logprob_column(r), "position", f32, f"log of {r}'s mass outside the support, nats; -inf: none")
            for r in roles
        ),
        *(
            col(
                tail_logpartition_column(p),
                "node",
                f32,
                f"log sum over v outside the support of exp(l_{p.anchor} + w_j (l_dpo - l_{p.negative})) at the nodes "
                "w_1 .. w_(J-1), nats; -inf: no token outside",
            )
            for p in pairs
        ),
        col(SUPPORT_IDS, "entry", i32, "the kept token ids, ascending inside a position"),
        *(col(logprobs_column(r), "entry", f32, f"log-probs of the kept tokens under {r}, nats") for r in roles),
    )


def arrow_schema(table: Iterable[Column], *, build_sha256: str) -> pa.Schema:
    """Arrow schema of a shard: non-nullable plain types, with the build's identity in the metadata."""
    fields = [pa.field(column.name, column.arrow_type, nullable=False) for column in table]
    return pa.schema(fields, metadata={BUILD_KEY: build_sha256.encode()})
