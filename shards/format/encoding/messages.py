"""Compares what any Arrow file or stream claims with the bytes that it has, before Arrow allocates what is claimed.

`layout` does this for shards, whose columns are known, far more closely.
"""

import struct
from collections.abc import Iterator

import pyarrow as pa

from shards.format.encoding.flatbuffer import Malformed, Table
from shards.format.encoding.layout import BLOCK, END, Block

MODEST_BYTES, MOST_EXPANDED = 2**28, 200
"""A compressed buffer may claim so many bytes, or so many times what is stored of it; text packs by ten or less."""

CONTINUES = b"\xff\xff\xff\xff"
DICTIONARY, RECORD_BATCH = 2, 3  # in the union MessageHeader


def require_possible(source: pa.NativeFile, *, compressed: bool = True) -> None:
    """Raise Malformed if a file or stream claims bytes that it cannot have. compressed: whether its buffers may be."""
    size = source.size()
    for block in _of_footer(source, size) if is_file(source) else _of_stream(source, size):
        _check(source, block, compressed)


def is_file(source: pa.NativeFile) -> bool:
    """Whether it is a file of Arrow, and not a stream."""
    return bool(source.read_at(len(END), 0) == END)


def _of_footer(source: pa.NativeFile, size: int) -> Iterator[Block]:
    length = struct.unpack("<i", source.read_at(4, max(0, size - 10)).ljust(4, b"\0"))[0]
    if not 0 < length <= size - 10:
        raise Malformed(f"expected a footer inside of {size} bytes, got one of {length}")
    footer = Table.root(source.read_at(length, size - 10 - length))
    for found in (*footer.structs(2, BLOCK), *footer.structs(3, BLOCK)):
        block = Block(*found)
        if min(block) < 0 or sum(block) > size:
            raise Malformed(f"expected record batches inside of {size} bytes, got {tuple(block)}")
        yield block


def _of_stream(source: pa.NativeFile, size: int) -> Iterator[Block]:
    place = 0
    while len(head := source.read_at(8, place)) == 8:
        prefix = 8 if head[:4] == CONTINUES else 4
        (length,) = struct.unpack("<i", head[prefix - 4 : prefix])
        if length == 0:
            return
        if not 0 < length <= size - place - prefix:
            raise Malformed(f"expected a message inside of {size} bytes, got one of {length} at byte {place}")
        body = Table.root(source.read_at(length, place + prefix)).number(3, "<q")
        if not 0 <= body <= size - place - prefix - length:
            raise Malformed(f"expected a message inside of {size} bytes, got {body} after byte {place}")
        yield Block(place, prefix + length, body)
        place += prefix + length + body


def _check(source: pa.NativeFile, block: Block, compressed: bool) -> None:
    content = source.read_at(block.metadata_bytes, block.offset)
    message = Table.root(content[8 if content[:4] == CONTINUES else 4 :])
    if message.number(3, "<q") != block.body_bytes:
        raise Malformed(f"expected a message of {block.body_bytes} bytes, got one of {message.number(3, '<q')}")
    kind, header = message.number(1, "<B"), message.table(2)
    if kind == DICTIONARY and header is not None:
        header = header.table(1)
    if kind not in (DICTIONARY, RECORD_BATCH) or header is None:
        return
    numbers = header.numbers(2)
    if not all(0 <= number <= block.body_bytes for number in numbers):
        raise Malformed(f"expected buffers inside of {block.body_bytes} bytes, got others")
    if header.table(3) is None:
        return
    if not compressed:
        raise Malformed("expected buffers as they are, got compressed ones")
    for start, stored in zip(numbers[::2], numbers[1::2], strict=True):
        claimed = int.from_bytes(source.read_at(8, block.offset + block.metadata_bytes + start)[:stored], "little")
        if claimed != 2**64 - 1 and claimed > max(MODEST_BYTES, MOST_EXPANDED * stored):
            raise Malformed(f"expected at most {MOST_EXPANDED} times the {stored} bytes that are stored, got {claimed}")
