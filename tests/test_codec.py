"""Encoding loses nothing beyond float32, and no value can change without its crc32."""

import json
import os
import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from fake_cache import DEFAULT_PAIRS, flat, make_cache, random_logprobs, with_scores

from shards.errors import CacheDamaged
from shards.format import schema
from shards.format.encoding import arrays, codec
from shards.format.schema import ROLES, Pair, arrow_schema


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("cache"), pairs=3)


def encode(responses, plan):
    return codec.encode(responses, plan, arrow_schema(plan.columns(), build_sha256=plan.sha256))


def require_equal(found, expected):
    found, expected = flat(found), flat(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_float32_values_come_back_exactly(fake):
    decoded = codec.decode(encode(fake.responses, fake.plan), fake.plan)
    assert len(decoded) == len(fake.responses)
    for found, expected in zip(decoded, fake.responses, strict=True):
        require_equal(found, expected)


def test_float64_values_come_back_as_the_nearest_float32(fake):
    response = fake.responses[0]
    exact = random_logprobs(np.random.default_rng(3), 1, response.scores.num_entries)["dpo"][0]
    wide = with_scores(response, logprobs={**response.scores.logprobs, "dpo": exact})
    (found,) = codec.decode(encode([wide], fake.plan), fake.plan)
    assert np.array_equal(found.scores.logprobs["dpo"], exact.astype(np.float32))
    assert np.max(np.abs(found.scores.logprobs["dpo"] / exact - 1)) <= 2**-24


def test_columns_have_the_types_of_the_schema_and_no_nulls(fake):
    batch = encode(fake.responses, fake.plan)
    for column, found in zip(fake.plan.columns(), batch.schema, strict=True):
        assert (found.name, found.type, found.nullable) == (column.name, column.arrow_type, False)
        assert batch.column(column.name).null_count == 0


def test_decoding_some_roles_gives_their_values_and_no_others(fake):
    pair = Pair("reference", "reference")
    found = codec.decode(encode(fake.responses, fake.plan), fake.plan, ("dpo", "reference"), (pair,))
    for response, expected in zip(found, fake.responses, strict=True):
        assert list(response.scores.logprobs) == ["dpo", "reference"]
        assert list(response.scores.l1_distance) == ["reference"]
        assert list(response.scores.tail_logpartition) == [pair]
        np.testing.assert_array_equal(response.scores.logprobs["dpo"], expected.scores.logprobs["dpo"])


def test_a_slice_of_a_batch_has_the_crc32_of_its_rows_alone(fake):
    whole = encode(fake.responses, fake.plan)
    part = encode(fake.responses[2:4], fake.plan)
    assert arrays.batch_metadata(whole.slice(2, 2), 0) == arrays.batch_metadata(part, 0)


def altered(response):
    """For every column, the response with one value of that column changed."""
    flipped = response.loss_mask.copy()
    flipped[0] = True
    yield schema.SAMPLE_ID, replace(response, sample_id=response.sample_id + "x")
    yield schema.PAIR_ID, replace(response, pair_id=response.pair_id + 1)
    yield schema.CHOSEN, replace(response, chosen=not response.chosen)
    yield schema.RESPONSE_START, replace(response, response_start=response.response_start + 1)
    yield schema.INPUT_IDS, replace(response, input_ids=nudged(response.input_ids))
    yield schema.LOSS_MASK, replace(response, loss_mask=flipped)
    scores = response.scores
    yield schema.SUPPORT_COUNT, with_scores(response, support_count=nudged(scores.support_count))
    yield schema.SUPPORT_IDS, with_scores(response, support_ids=nudged(scores.support_ids))
    by_role = {
        "logprobs": schema.logprobs_column,
        "next_logprob": schema.next_logprob_column,
        "tail_logprob": schema.tail_logprob_column,
        "l1_distance": schema.l1_distance_column,
        "tail_logpartition": schema.tail_logpartition_column,
    }
    for field, column in by_role.items():
        for key, value in getattr(scores, field).items():
            yield column(key), with_scores(response, **{field: {**getattr(scores, field), key: nudged(value)}})


def nudged(values):
    """The array with its last finite value moved by the smallest step."""
    values = values.copy()
    last = tuple(np.argwhere(np.isfinite(values))[-1])
    step = values[last] + 1 if values.dtype.kind == "i" else np.nextafter(values[last], np.float32(-100))
    values[last] = step
    return values


def test_the_least_change_of_any_value_changes_its_crc32_and_no_other(fake):
    response = fake.responses[0]
    before = json.loads(arrays.batch_metadata(encode([response], fake.plan), 0)[schema.CRC32_KEY])
    seen = set()
    for name, changed in altered(response):
        after = json.loads(arrays.batch_metadata(encode([changed], fake.plan), 0)[schema.CRC32_KEY])
        assert {column for column in before if before[column] != after[column]} == {name}
        seen.add(name)
    assert seen == set(before)


def test_values_that_move_to_another_row_change_the_crc32(fake):
    batch = encode(fake.responses[:2], fake.plan)
    column = batch.column(schema.INPUT_IDS)
    values, offsets = column.values, column.offsets.to_numpy().copy()
    offsets[1] -= 1
    moved = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
    assert moved.values.equals(values)
    there = pa.RecordBatch.from_arrays([column, moved], ["before", "after"])
    crc32 = {name: arrays.column_crc32(flat) for name, flat in arrays.flatten(there).items()}
    assert crc32["after"] != crc32["before"]


def test_an_altered_column_is_refused_by_name(fake):
    batch = encode(fake.responses[:1], fake.plan)
    metadata = arrays.batch_metadata(batch, 0)
    arrays.check_crc32(batch, metadata, "here")
    for name, changed in altered(fake.responses[0]):
        with pytest.raises(CacheDamaged, match=f"^here column {name}: expected crc32 [0-9]+, got [0-9]+$"):
            arrays.check_crc32(encode([changed], fake.plan), metadata, "here")


@pytest.mark.parametrize("metadata", [{}, {b"crc32": b"{"}, {b"crc32": b"[1]"}, {b"crc32": b"3"}, {b"crc32": b"{}"}])
def test_a_batch_without_usable_crc32_is_refused(fake, metadata):
    batch = encode(fake.responses[:1], fake.plan)
    with pytest.raises(CacheDamaged, match=r"^here.*: expected crc32"):
        arrays.check_crc32(batch, metadata, "here")


def test_columns_come_in_the_order_of_the_roles_whatever_order_they_are_given_in():
    assert schema.columns(ROLES, DEFAULT_PAIRS, "compact") == schema.columns(ROLES[::-1], DEFAULT_PAIRS, "compact")


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    from shards.format import writer

    seen = []
    plain_fsync, plain_replace = writer.flush, Path.replace
    monkeypatch.setattr(writer, "flush", lambda path: (seen.append(("fsync", path.name)), plain_fsync(path)))
    monkeypatch.setattr(
        Path, "replace", lambda self, to: (seen.append(("rename", self.name, to.name)), plain_replace(self, to))[1]
    )
    writer.write_json(tmp_path, "plan.json", {})
    temporary = f".plan.json.{platform.node()}-{os.getpid()}.aligndistil-tmp"
    assert seen == [("fsync", temporary), ("rename", temporary, "plan.json"), ("fsync", tmp_path.name)]
