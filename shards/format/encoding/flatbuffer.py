"""Table: a flatbuffers table read by slot, with every offset checked. In such tables Arrow describes record batches."""

import struct
from typing import Any


class Malformed(ValueError):
    """What is wrong with a file, in words: expected ..., got ..."""


class Table:
    """A table in `content`. Raises Malformed for whatever would lead out of it."""

    __slots__ = ("_content", "_fields", "_start")

    def __init__(self, content: bytes, start: int) -> None:
        self._content, self._start = content, start
        fields = start - self.read("<i", start)
        size = self.read("<H", fields)
        if size < 4 or size % 2:
            raise Malformed(f"expected a table of metadata, got one of {size} bytes")
        self._fields = self._unpack(f"<{size // 2 - 2}H", fields + 4)

    @classmethod
    def root(cls, content: bytes) -> "Table":
        if len(content) < 4:
            raise Malformed(f"expected metadata, got {len(content)} bytes")
        return cls(content, struct.unpack_from("<I", content)[0])

    def number(self, slot: int, form: str) -> int:
        """A number; 0, the default, if it is not there."""
        place = self._place(slot)
        return 0 if place is None else self.read(form, place)

    def table(self, slot: int) -> "Table | None":
        place = self._place(slot)
        return None if place is None else Table(self._content, place + self.read("<I", place))

    def structs(self, slot: int, form: str) -> list[tuple[Any, ...]]:
        """A vector of structs; empty if it is not there."""
        start, count = self._vector(slot, struct.calcsize(form))
        return list(struct.iter_unpack(form, self._content[start : start + count * struct.calcsize(form)]))

    def numbers(self, slot: int) -> tuple[int, ...]:
        """The numbers of a vector of structs of two int64."""
        start, count = self._vector(slot, 16)
        return struct.unpack_from(f"<{2 * count}q", self._content, start)

    def _vector(self, slot: int, bytes_each: int) -> tuple[int, int]:
        """Where the elements begin, and their number."""
        place = self._place(slot)
        if place is None:
            return 0, 0
        start = place + self.read("<I", place)
        count = self.read("<I", start)
        if start + 4 + count * bytes_each > len(self._content):
            raise Malformed(f"expected {len(self._content)} bytes of metadata, got a list of {count} at byte {start}")
        return start + 4, count

    def read(self, form: str, place: int) -> int:
        found: int = self._unpack(form, place)[0]
        return found

    def _place(self, slot: int) -> int | None:
        if slot >= len(self._fields) or self._fields[slot] == 0:
            return None
        return self._start + int(self._fields[slot])

    def _unpack(self, form: str, place: int) -> tuple[Any, ...]:
        if place < 0 or place + struct.calcsize(form) > len(self._content):
            raise Malformed(f"expected {len(self._content)} bytes of metadata, got an offset to byte {place}")
        return struct.unpack_from(form, self._content, place)
