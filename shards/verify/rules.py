"""The rules of docs/format.md by number, and the report of a broken one."""

from dataclasses import dataclass

from shards.errors import plain

RULES = {
    1: "manifest",
    2: "plan",
    3: "vocabulary",
    4: "files",
    5: "shard",
    6: "schema",
    7: "record batches",
    8: "crc32",
    9: "names",
    10: "lengths",
    11: "mask",
    12: "token ids",
    13: "support",
    14: "finite",
    15: "log-probs",
    16: "mass",
    17: "next token",
    18: "l1 distance",
    19: "tail",
    20: "statistics",
    21: "index",
    22: "provenance",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A broken rule, and where: `text` names the file, the row if there is one, expected and got."""

    rule: int
    text: str

    def __str__(self) -> str:
        return f"{plain(self.text)} [rule {self.rule}: {RULES[self.rule]}]"
