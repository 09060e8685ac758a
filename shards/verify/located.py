"""Where a flipped bit lies: the record batch, column and rows of a shard, or the field of a JSON file."""

import re
from collections.abc import Sequence

import pyarrow as pa

from shards.errors import CacheDamaged
from shards.format.batches import OpenShard, ShardOpener, load_batch
from shards.format.encoding import arrays
from shards.format.encoding.arrays import Flat
from shards.format.encoding.flatbuffer import Malformed
from shards.format.encoding.layout import LEVELS, Form, read_blocks
from shards.format.index import INDEX_SCHEMA
from shards.format.plan import Plan
from shards.format.schema import Column
from shards.verify.flipped import Flip

KEY = re.compile(r'\s*"((?:[^"\\]|\\.)*)": ')


def in_shard(content: bytes, flip: Flip, plan: Plan, shard: int) -> str:
    """The place of a flip in a shard. content: with the flip."""
    try:
        return _in_shard(content, flip, plan, shard)
    except (CacheDamaged, Malformed):  # without the flip too
        return "in a file that is none of this format"


def in_index(content: bytes, flip: Flip, plan: Plan) -> str:
    """The place of a flip in the index. content: with the flip."""
    right, columns = pa.BufferReader(flip.undone(content)), [Column(f.name, "row", f.type, "") for f in INDEX_SCHEMA]
    try:
        (block,) = read_blocks(right)
        buffers = Form(columns).read(right, block, dict.fromkeys(LEVELS, plan.rows))
    except ValueError:  # Malformed too
        return "in a file that is none of this format"
    for buffer, column in zip(buffers, columns, strict=True):
        row = (8 * (flip.byte - buffer.offset) + flip.bit) // column.value_type.bit_width
        if 0 <= row < plan.rows:
            return f"in column {column.name}, row {row}"
    return "outside of its values"


def _in_shard(content: bytes, flip: Flip, plan: Plan, shard: int) -> str:
    opened = _opened(flip.undone(content), plan)
    for number, block in enumerate(opened.blocks):
        if block.offset <= flip.byte < block.body:
            return f"in the metadata of record batch {number}, {_rows(plan, shard, number, range(plan.rows_per_batch))}"
        if block.body <= flip.byte < block.body + block.body_bytes:
            return _in_batch(content, flip, plan, shard, number, opened)
    first = min((block.offset for block in opened.blocks), default=0)
    return "in the schema at the beginning, which is not read" if flip.byte < first else "in the footer"


def _in_batch(content: bytes, flip: Flip, plan: Plan, shard: int, batch: int, opened: OpenShard) -> str:
    for buffer in opened.form.read(opened.source, opened.blocks[batch], plan.most_values(shard, batch)):
        if buffer.offset <= flip.byte < buffer.offset + buffer.stored:
            right = _column(flip.undone(content), plan, shard, batch, buffer.column)
            try:
                found = _column(content, plan, shard, batch, buffer.column)
            except CacheDamaged:
                found = None
            hit = [i for i in range(plan.num_rows(shard, batch)) if found is None or _row(found, i) != _row(right, i)]
            where = _rows(plan, shard, batch, hit) if hit else "which changes no value"
            return f"in record batch {batch}, column {buffer.column}, {where}"
    return f"in record batch {batch}, between its buffers"


def _opened(content: bytes, plan: Plan, names: Sequence[str] | None = None) -> OpenShard:
    return ShardOpener(plan, names).read(pa.BufferReader(content), "shard")


def _column(content: bytes, plan: Plan, shard: int, batch: int, name: str) -> Flat:
    most = plan.most_values(shard, batch)
    found, _ = load_batch(_opened(content, plan, [name]), batch, plan.first_row(shard, batch), most, "shard")
    return arrays.flatten(found)[name]


def _row(column: Flat, row: int) -> bytes:
    values, offsets = column
    found = values[row : row + 1] if offsets is None else values[offsets[row] : offsets[row + 1]]
    return bytes(found) if isinstance(found, bytes) else bytes(found.tobytes())


def _rows(plan: Plan, shard: int, batch: int, hit: Sequence[int]) -> str:
    """Rows of a record batch by their numbers in the cache."""
    return rows_text(plan, shard, batch, hit[0], min(hit[-1], plan.num_rows(shard, batch) - 1))


def rows_text(plan: Plan, shard: int, batch: int, first: int, last: int) -> str:
    begin = plan.first_row(shard, batch)
    return f"row {begin + first}" if first == last else f"rows {begin + first} to {begin + last}"


def in_json(right: bytes, flip: Flip) -> str:
    """The field of a flip in an indented JSON file, as `shards[3].sha256`. right: the file without the flip."""
    path: list[str] = []
    counts: list[int] = []
    for line in right[: _line_end(right, flip.byte)].decode().splitlines():
        depth = len(line) - len(line.lstrip(" "))
        del path[depth:], counts[depth + 1 :]
        counts += [-1] * (depth + 1 - len(counts))
        if line.lstrip()[:1] in ("}", "]"):
            continue
        counts[depth] += 1
        key = KEY.match(line)
        path += [""] * (depth - len(path))
        path.append(f".{key[1]}" if key else f"[{counts[depth]}]")
    return f"in {''.join(path[1:]).removeprefix('.')}" if path[1:] else "at its end"


def _line_end(content: bytes, byte: int) -> int:
    found = content.find(b"\n", byte)
    return len(content) if found < 0 else found
