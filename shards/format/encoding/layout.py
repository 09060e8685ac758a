"""Where the buffers of a record batch lie in an Arrow IPC file, and the sizes that they claim, before Arrow reads them.

Arrow allocates what a file claims, and looks afterwards. Here the footer and the metadata of a record batch are read
first, by the slots of Arrow's File.fbs and Message.fbs, and refused if a column claims more than it can hold.
"""

import struct
from collections.abc import Mapping, Sequence
from operator import add, gt, itemgetter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from shards.format.encoding.flatbuffer import Malformed, Table
from shards.format.schema import Column, Level

MAX_METADATA_BYTES = 1 << 20
"""Of a record batch's metadata, and of a footer beside its table of record batches."""
MAX_BATCH_BYTES = 1 << 30
"""Of a record batch, uncompressed, whatever is known of it."""
MAX_NAME_BYTES = 64
"""Of a sample_id: pair_id has 19 digits at most."""

END = b"ARROW1"
BLOCK = "<qi4xq"
LEVELS: tuple[Level, ...] = ("row", "token", "position", "node", "entry")
READ_AT_ONCE = 1 << 20
RECORD_BATCH = 3  # in the union MessageHeader


class Block(NamedTuple):
    """A record batch in a file: where its message begins, and the bytes of the message's two parts."""

    offset: int
    metadata_bytes: int
    body_bytes: int

    @property
    def body(self) -> int:
        """Where its buffers begin."""
        return self.offset + self.metadata_bytes


class Buffer(NamedTuple):
    """A buffer of a column; there is none for nulls, since nothing is null.

    part      "offsets" or "values"
    offset    of its stored bytes in the file
    claimed   its bytes after decompression, as it says itself
    """

    column: str
    part: str
    offset: int
    stored: int
    claimed: int


class Form:
    """How record batches with these columns look, and where those of `names` (default: all) are in them.

    Arrays with an element for each buffer that is read: its column, which half of the column it is, the number of the
    buffer and of the node that counts its values, their level, and the bits of a value.
    """

    def __init__(self, columns: Sequence[Column], names: Sequence[str] | None = None) -> None:
        self.nodes = self.buffers = 0
        found: list[tuple[str, str, int, int, int, int]] = []
        of_nodes: list[Level] = []
        for column in columns:
            is_text, is_list = pa.types.is_string(column.value_type), column.level != "row"
            last = self.buffers + 1 + is_text + 2 * is_list
            if names is None or column.name in names:
                if is_text or is_list:
                    found.append((column.name, "offsets", self.buffers + 1, self.nodes, len(LEVELS), 32))
                bits = 8 * MAX_NAME_BYTES if is_text else column.value_type.bit_width
                level = LEVELS.index(column.level)
                found.append((column.name, "values", last, self.nodes + is_list, level, bits))
            self.nodes, self.buffers = self.nodes + 1 + is_list, last + 1
            of_nodes += ["row", column.level] if is_list else ["row"]
        self._names = [(name, part) for name, part, *_ in found]
        numbers_of = np.array([numbers for _, _, *numbers in found])
        self._buffer, self._node, self._level, bits = np.ascontiguousarray(numbers_of.T)
        self._bits = bits.astype("<u8")
        self._of_offsets = (self._level == len(LEVELS)).astype("<u8")
        self._usual = _Usual(of_nodes, [numbers for _, _, *numbers in found], self.buffers)

    def check(self, source: pa.NativeFile, block: Block, most: Mapping[Level, int]) -> None:
        """Raise Malformed for a record batch whose columns claim more than they can hold.

        most: the most values of each level, such as the response positions of the batch; the rows exactly.

        A training does this for every record batch. So it is first seen, with one read, whether it is a usual one.
        """
        body_bytes = block.body_bytes if block.body_bytes <= READ_AT_ONCE else 0
        content = source.read_at(block.metadata_bytes + body_bytes, block.offset)
        if not self._usual.takes(_header(content, block), content, block, most):
            self.read(source, block, most)

    def read(self, source: pa.NativeFile, block: Block, most: Mapping[Level, int]) -> list[Buffer]:
        """The buffers of `names` in a record batch. Raises Malformed as `check`."""
        header, begin = _header(source.read_at(block.metadata_bytes, block.offset), block), block.body
        nodes, buffers = (np.array(header.numbers(slot)).reshape(-1, 2) for slot in (1, 2))
        if (len(nodes), len(buffers)) != (self.nodes, self.buffers):
            raise Malformed(f"expected {self.buffers} buffers for its columns, got {len(buffers)}")
        if nodes[:, 1].any():
            raise Malformed("expected no nulls, got some")
        counts, (starts, stored) = nodes[self._node, 0], buffers[self._buffer].T
        self._require(counts, self._allowed(most), "number")
        self._require(starts, np.full(len(starts), block.body_bytes), "place")
        self._require(stored, np.asarray(block.body_bytes - starts), "stored bytes")
        claimed = stored if header.table(3) is None else _claims(source, (starts + begin).tolist(), stored)
        self._require(claimed, self._needed(counts), "bytes")
        if (total := int(claimed.sum())) > MAX_BATCH_BYTES:
            raise Malformed(f"expected {MAX_BATCH_BYTES} bytes at most, got {total}")
        numbers = zip((starts + begin).tolist(), stored.tolist(), claimed.tolist(), strict=True)
        return [Buffer(*name, *found) for name, found in zip(self._names, numbers, strict=True)]

    def _allowed(self, most: Mapping[Level, int]) -> Any:
        """The most values in each buffer; for row offsets, of rows."""
        return np.array([*(most[level] for level in LEVELS), most["row"]], "<u8")[self._level]

    def _needed(self, counts: Any) -> Any:
        """The bytes of so many values, padded as Arrow may do."""
        return (self._bits * (counts.view("<u8") + self._of_offsets) + 511 >> 9) << 6

    def _require(self, found: Any, most: Any, what: str) -> None:
        wrong = found.view("<u8") > most.view("<u8")  # so are negative numbers
        if wrong.any():
            i = int(np.flatnonzero(wrong)[0])
            name, part = self._names[i]
            raise Malformed(f"column {name}: expected {what} of {part} to be {most[i]} at most, got {found[i]}")


class _Usual:
    """Whether a record batch is as the writer makes it, and fits: all buffers compressed, and columns of equal lengths.

    It says yes only to what `Form.read` does not refuse. Each step is a loop in C over all nodes or buffers, because
    there are few of them; numpy takes twice as long. Numbers are read without a sign: a negative one is beyond every
    limit. levels: of each node; found: numbers of the buffers, as in `Form`.
    """

    def __init__(self, levels: Sequence[Level], found: Sequence[Sequence[int]], buffers: int) -> None:
        self._levels = list(dict.fromkeys(levels))
        firsts, wanted = set(map(levels.index, self._levels)), {buffer for buffer, *_ in found}
        self._firsts = struct.Struct("<" + "".join("Q8x" if i in firsts else "16x" for i in range(len(levels))))
        self._nodes = struct.Struct(f"<{'Q8x' * len(levels)}")
        self._spread = itemgetter(*map(self._levels.index, levels))
        self._buffers = struct.Struct("<" + "".join("QQ" if i in wanted else "16x" for i in range(buffers)))
        kinds = [(self._levels.index(levels[node]), bits, level == len(LEVELS)) for _, node, level, bits in found]
        self._kinds = [(i, bits, bits * more + 511) for i, bits, more in dict.fromkeys(kinds)]
        places = list(map([*dict.fromkeys(kinds)].index, kinds))
        self._kind = itemgetter(*places, places[0])  # one too many: of a single place it would give no tuple

    def takes(self, header: Table, content: bytes, block: Block, most: Mapping[Level, int]) -> bool:
        (nodes, count), (buffers, number) = header.vector(1, 16), header.vector(2, 16)
        metadata, size = header.content, block.body_bytes
        if (16 * count, 16 * number) != (self._nodes.size, self._buffers.size) or not header.has(3) or size % 8:
            return False
        counts = self._firsts.unpack_from(metadata, nodes)
        if metadata[nodes : nodes + 16 * count] != self._nodes.pack(*self._spread(counts)):  # and no nulls
            return False
        if any(map(gt, counts, map(most.__getitem__, self._levels))):
            return False
        found = self._buffers.unpack_from(metadata, buffers)
        starts, stored = found[::2], found[1::2]
        if min(stored) < 8 or max(map(add, starts, stored)) > size:
            return False
        body = memoryview(content)[block.metadata_bytes :]
        if len(body) < size:
            return False
        words = body.cast("Q")
        claimed = [words[start >> 3] for start in starts if not start & 7]
        limits = self._kind([(bits * counts[i] + more >> 9) << 6 for i, bits, more in self._kinds])
        if len(claimed) < len(starts) or any(map(gt, claimed, limits)):
            return False
        return sum(claimed) <= MAX_BATCH_BYTES


def _claims(source: pa.NativeFile, starts: Sequence[int], stored: Any) -> Any:
    """What the first eight bytes of compressed buffers say; -1: what follows is not compressed."""
    heads = [source.read_at(8, start) if size >= 8 else b"" for start, size in zip(starts, stored, strict=True)]
    claimed = np.array([int.from_bytes(head, "little", signed=True) for head in heads])
    return np.where(claimed == -1, stored - 8, claimed)


def read_blocks(source: pa.NativeFile) -> list[Block]:
    """The record batches that the footer of an Arrow IPC file lists, each inside of the file. Raises Malformed."""
    size = source.size()
    tail = source.read_at(10, max(0, size - 10))
    length = int.from_bytes(tail[:4], "little", signed=True)
    if tail[4:] != END or not 0 < length <= size - 18:
        raise Malformed("expected an Arrow IPC file, got no footer at its end")
    footer = Table.root(source.read_at(length, size - 10 - length))
    blocks = [Block(*found) for found in footer.structs(3, BLOCK)]
    if length > MAX_METADATA_BYTES + len(blocks) * struct.calcsize(BLOCK):
        raise Malformed(f"expected a footer of {MAX_METADATA_BYTES} bytes at most beside its table, got {length}")
    if footer.structs(2, BLOCK):
        raise Malformed("expected no dictionaries, got some")
    for block in blocks:
        inside = sum(block) <= size - 10 - length and min(block) >= 0
        if not inside or block.metadata_bytes > MAX_METADATA_BYTES:
            raise Malformed(f"expected record batches inside of {size} bytes, got {tuple(block)}")
    return blocks


def _header(content: bytes, block: Block) -> Table:
    """The table RecordBatch of a message, which begins with a mark of four bytes and its length."""
    message = Table.root(content[8 : block.metadata_bytes])
    header = message.table(2)
    if header is None or message.number(1, "<B") != RECORD_BATCH or message.number(3, "<q") != block.body_bytes:
        raise Malformed(f"expected a record batch of {block.body_bytes} bytes, got another message")
    return header
