"""Table: a flatbuffers table read by slot, with every offset checked. In such tables Arrow describes record batches."""

import struct
from functools import cache, lru_cache
from typing import Any

_form = cache(struct.Struct)
_I32, _U16, _U32 = map(_form, ("<i", "<H", "<I"))


class Malformed(ValueError):
    """What is wrong with a file, in words: expected ..., got ..."""


class Table:
    """A table in `content`. Raises Malformed for whatever would lead out of it.

    A training reads two for every record batch: so numbers are unpacked by forms that are made once.
    """

    __slots__ = ("_fields", "_start", "content")

    def __init__(self, content: bytes, start: int) -> None:
        self.content, self._start = content, start
        fields = start - _unpack(_I32, content, start)
        size = _unpack(_U16, content, fields)
        if size < 4 or size % 2:
            raise Malformed(f"expected a table of metadata, got one of {size} bytes")
        if fields + size > len(content):
            raise Malformed(f"expected {len(content)} bytes of metadata, got an offset to byte {fields + 4}")
        self._fields = _fields(size).unpack_from(content, fields + 4)

    @classmethod
    def root(cls, content: bytes) -> "Table":
        if len(content) < 4:
            raise Malformed(f"expected metadata, got {len(content)} bytes")
        return cls(content, _unpack(_U32, content, 0))

    def number(self, slot: int, form: str) -> int:
        """A number; 0, the default, if it is not there."""
        place = self._place(slot)
        return 0 if place is None else _unpack(_form(form), self.content, place)

    def table(self, slot: int) -> "Table | None":
        place = self._place(slot)
        return None if place is None else Table(self.content, place + _unpack(_U32, self.content, place))

    def structs(self, slot: int, form: str) -> list[tuple[Any, ...]]:
        """A vector of structs; empty if it is not there."""
        start, count = self.vector(slot, struct.calcsize(form))
        return list(struct.iter_unpack(form, self.content[start : start + count * struct.calcsize(form)]))

    def numbers(self, slot: int) -> tuple[int, ...]:
        """The numbers of a vector of structs of two int64."""
        start, count = self.vector(slot, 16)
        return struct.unpack_from(f"<{2 * count}q", self.content, start)

    def has(self, slot: int) -> bool:
        return self._place(slot) is not None

    def vector(self, slot: int, bytes_each: int) -> tuple[int, int]:
        """Where the elements of a vector begin, and their number."""
        place = self._place(slot)
        if place is None:
            return 0, 0
        start = place + _unpack(_U32, self.content, place)
        count = _unpack(_U32, self.content, start)
        if start + 4 + count * bytes_each > len(self.content):
            raise Malformed(f"expected {len(self.content)} bytes of metadata, got a list of {count} at byte {start}")
        return start + 4, count

    def _place(self, slot: int) -> int | None:
        if slot >= len(self._fields) or self._fields[slot] == 0:
            return None
        return self._start + int(self._fields[slot])


@lru_cache(64)
def _fields(size: int) -> struct.Struct:
    """The form of a table's list of fields, which takes `size` bytes with its head."""
    return struct.Struct(f"<{size // 2 - 2}H")


def _unpack(form: struct.Struct, content: bytes, place: int) -> int:
    if place < 0 or place + form.size > len(content):
        raise Malformed(f"expected {len(content)} bytes of metadata, got an offset to byte {place}")
    found: int = form.unpack_from(content, place)[0]
    return found
