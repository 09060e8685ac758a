"""Limits before allocation: what a shard claims to hold is compared with what it can hold before Arrow reads it."""

import struct

import numpy as np
import pyarrow as pa
import pytest
from fake_cache import make_cache
from faults import set_entry

from shards import ShardCache
from shards.errors import CacheDamaged, OptionError
from shards.format import writer
from shards.format.batches import ShardOpener
from shards.format.encoding import arrays, layout
from shards.verify.__main__ import verify

PART = "part-00000.arrow"


@pytest.fixture(params=["float32", "compact"])
def fake(tmp_path, request):
    return make_cache(tmp_path, pairs=2, values=request.param)


def buffers_of(fake, batch=0):
    file = ShardOpener(fake.plan).open(fake.folder / PART)
    return file.form.read(file.source, file.blocks[batch], fake.plan.most_values(0, batch))


def overwrite(path, offset, content):
    found = bytearray(path.read_bytes())
    found[offset : offset + len(content)] = content
    path.write_bytes(bytes(found))


def refused(fake):
    """The one line with which the reader refuses, and the bytes that Arrow has allocated on the way."""
    before = pa.total_allocated_bytes()
    with pytest.raises(CacheDamaged) as error:
        ShardCache(fake.folder).read([0])
    assert "\n" not in str(error.value) and pa.total_allocated_bytes() - before < 1 << 20
    return str(error.value)


def test_buffers_lie_where_arrow_reads_them(fake):
    """Decompressed from where they are said to be, they are Arrow's own buffers."""
    content = (fake.folder / PART).read_bytes()
    batch = ShardOpener(fake.plan).open(fake.folder / PART).reader.get_batch(0)
    buffers = buffers_of(fake)
    assert {buffer.column for buffer in buffers} == set(batch.schema.names)
    for buffer in buffers:
        own = [found for found in batch.column(buffer.column).buffers() if found is not None]
        stored = content[buffer.offset + 8 : buffer.offset + buffer.stored]
        found = pa.Codec("zstd").decompress(stored, buffer.claimed)
        assert found.equals(own[0 if buffer.part == "offsets" else -1])


@pytest.mark.parametrize("claim", [1 << 60, 1 << 33, -2])
def test_a_buffer_that_claims_more_than_it_can_hold_is_refused_by_name(fake, claim):
    for buffer in buffers_of(fake):
        content = (fake.folder / PART).read_bytes()
        overwrite(fake.folder / PART, buffer.offset, struct.pack("<q", claim))
        expected = f"{fake.folder / PART} record batch 0 column {buffer.column}: expected bytes of {buffer.part} to be"
        assert refused(fake).startswith(expected) and refused(fake).endswith(f"got {claim}")
        (fake.folder / PART).write_bytes(content)


def test_a_zstd_bomb_is_refused_before_it_is_decompressed(fake):
    path = fake.folder / PART
    file = pa.ipc.open_file(pa.py_buffer(path.read_bytes()))
    found, place = file.get_batch_with_custom_metadata(0), file.schema.get_field_index("input_ids")
    columns = found.batch.columns
    columns[place] = pa.array([np.zeros(20_000_000, np.int32), []], pa.list_(pa.int32()))
    bomb = pa.RecordBatch.from_arrays(columns, schema=file.schema)
    with pa.ipc.new_file(str(path), file.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as out:
        out.write_batch(bomb, found.custom_metadata)
    assert path.stat().st_size < 100_000
    faults = [fault.text for fault in verify(fake.folder)]
    assert f"{path}: expected 2 record batches, got 1" in faults
    set_entry(fake.folder, 0, bytes=path.stat().st_size)
    assert "column input_ids: expected number of values to be 128 at most, got 20000000" in refused(fake)


def test_a_footer_or_metadata_of_a_claimed_size_is_refused(fake):
    path = fake.folder / PART
    content, block = path.read_bytes(), ShardOpener(fake.plan).open(path).blocks[0]
    overwrite(path, len(content) - 10, struct.pack("<i", 2**31 - 1))
    assert "expected an Arrow IPC file, got no footer" in refused(fake)
    for wrong in ((block.offset, 2**31 - 8, block.body_bytes), (block.offset, block.metadata_bytes, 2**62), (-8, 8, 8)):
        path.write_bytes(content.replace(struct.pack("<qi4xq", *block), struct.pack("<qi4xq", *wrong)))
        assert "expected record batches inside of" in refused(fake)


def test_a_writer_refuses_a_record_batch_that_no_reader_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "MAX_BATCH_BYTES", 1000)
    with pytest.raises(OptionError, match="rows_per_batch: expected record batches of 1000 bytes at most, got"):
        make_cache(tmp_path)


def test_a_record_batch_has_a_limit_whatever_its_plan_says(fake, monkeypatch):
    monkeypatch.setattr(layout, "MAX_BATCH_BYTES", 1000)
    assert "record batch 0 expected 1000 bytes at most, got" in refused(fake)


def test_what_is_seen_at_a_glance_is_what_a_full_look_allows(fake):
    """Whatever one number of a record batch's metadata becomes. A batch as it was written needs no full look."""
    path = fake.folder / PART
    file, most, content = ShardOpener(fake.plan).open(path), fake.plan.most_values(0, 0), path.read_bytes()
    block = file.blocks[0]
    header = layout._header(content[block.offset : block.body], block)
    vectors = [header.vector(slot, 16) for slot in (1, 2)]
    words = [start + 8 * i for start, count in vectors for i in range(2 * count)]
    starts = [buffer.offset - block.offset for buffer in file.form.read(file.source, block, most)]
    passed = 0
    for place in [8 + word for word in words[::3]] + starts:
        found = bytearray(content[block.offset : block.body + block.body_bytes])
        (number,) = struct.unpack_from("<q", found, place)
        for other in {number, 0, number + 1, number + 8, block.body_bytes, -1, -(2**63)}:
            struct.pack_into("<q", found, place, other)
            usual = file.form._usual.takes(layout._header(found, block), bytes(found), block, most)
            passed += usual
            if usual:
                at = layout.Block(0, *block[1:])
                assert file.form.read(pa.BufferReader(bytes(found)), at, most)
            assert usual or other != number
    assert passed > len(words[::3])
    written = (header, content[block.offset : block.body + block.body_bytes], block)
    assert not any(file.form._usual.takes(*written, most | {level: 0}) for level in layout.LEVELS)


def test_sums_are_read_at_a_glance_only_as_they_are_written():
    form = arrays.sums_form(["b", "a", "c"], ["c", "a"])
    assert form.fullmatch(b'{"a":0,"b":7,"c":4294967295}').groupdict() == {"a": b"0", "c": b"4294967295"}
    for text in (
        b'{"a":1,"b":2}',
        b'{"a":01,"b":2,"c":3}',
        b'{"a":1,"a":1,"b":2,"c":3}',
        b'{"a":1,"b":-2,"c":3}',
        b"",
        b'{"a":1,"b":2,"c":3}\n',
        b'{"a": 1,"b":2,"c":3}',
        b'{"b":2,"a":1,"c":3}',
        b'{"a":1,"b":"x","c":3}',
    ):
        assert form.fullmatch(text) is None
