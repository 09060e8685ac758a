"""The index of a cache: written by the build, checked by every reader, and all that opening reads about rows."""

import hashlib
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from conftest import build_options
from fake_cache import index_of, make_cache, write_cache
from faults import require_only

from precompute.build.build import build
from shards import ShardCache
from shards.errors import CacheDamaged, CacheMissing
from shards.format.batches import BatchReader
from shards.format.index import INDEX_FILE, INDEX_SCHEMA, RowIndex, read_index
from shards.format.manifest import PLAN_FILE, read_plan
from shards.format.writer import plan_bytes, write_index
from shards.preferences.pairs import find_pairs
from student.data.responses import CachedResponses


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("index") / "cache", pairs=4)


@pytest.fixture
def copy(fake, tmp_path):
    return shutil.copytree(fake.folder, tmp_path / "copy")


def columns_of(index):
    return {name: getattr(index, name).tolist() for name in RowIndex.__slots__}


def test_the_build_writes_the_index_of_its_rows(sparse_cache, whole_cache):
    for cache in (sparse_cache, whole_cache):
        assert columns_of(cache.index) == columns_of(index_of(cache.read(range(len(cache)))))


def test_opening_a_cache_for_training_reads_no_record_batch(fake, monkeypatch):
    def read(*args):
        raise AssertionError("a record batch was read")

    monkeypatch.setattr(BatchReader, "read", read)
    assert len(CachedResponses([fake.folder], train_on="both")) == 8
    assert len(find_pairs(ShardCache(fake.folder))) == 4


@pytest.mark.parametrize(("train_on", "order"), [("rejected", [6, 0, 5, 3, 4]), ("both", [13, 8, 0, 7, 9])])
def test_rows_of_several_caches_are_found_by_one_number_each(fake, tmp_path, train_on, order):
    other = make_cache(tmp_path / "other", pairs=3, seed=1)
    data = CachedResponses([fake.folder, other.folder], train_on=train_on)
    expected = [r for r in (*fake.responses, *other.responses) if train_on == "both" or not r.chosen]
    assert len(data) == len(expected)
    assert data.lengths.tolist() == [len(response.input_ids) for response in expected]
    found = data.__getitems__([data_item(row) for row in order])
    for tokens, row in zip(found.tokens, order, strict=True):
        np.testing.assert_array_equal(tokens.input_ids, expected[row].input_ids)
    counts = np.concatenate([expected[row].scores.support_count for row in order])
    np.testing.assert_array_equal(found.scores.support_count, counts)


def data_item(row):
    from student.data.order import BatchItem

    return BatchItem(row, True)


def test_what_a_reader_keeps_of_a_row_is_some_tens_of_bytes(tmp_path):
    rows = 1_000
    index = RowIndex(
        pair_id=np.arange(rows),
        chosen=np.ones(rows, bool),
        num_tokens=np.full(rows, 9, np.int32),
        num_positions=np.full(rows, 5, np.int32),
    )
    fake = make_cache(tmp_path / "cache", pairs=3)
    sha256 = write_index(tmp_path, index)
    shard = replace(fake.plan.shards[0], rows=rows, positions=5 * rows)
    found = read_index(tmp_path, replace(fake.plan, index_sha256=sha256, shards=(shard,)))
    assert columns_of(found) == columns_of(index)
    assert sum(getattr(found, name).nbytes for name in RowIndex.__slots__) == 17 * rows
    assert (tmp_path / INDEX_FILE).stat().st_size < 19 * rows
    data = CachedResponses([fake.folder], train_on="both")
    assert (
        sum(value.nbytes for value in vars(data).values() if isinstance(value, np.ndarray) and len(value) == 6) == 6 * 8
    )


@pytest.mark.parametrize("place", [0, 9, 100, -200, -1])
def test_a_flipped_byte_of_the_index_is_refused_in_one_line(copy, place):
    path = copy / INDEX_FILE
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)
    cache = ShardCache(copy)
    with pytest.raises(CacheDamaged, match=rf"^{path}: expected sha256 [0-9a-f]{{64}}, got [0-9a-f]{{64}}$"):
        _ = cache.index
    (fault,) = require_only(copy, 21)
    assert str(fault).startswith(f"{path}: expected sha256 ")


def test_a_missing_index_is_named_when_the_cache_is_opened(copy):
    (copy / INDEX_FILE).unlink()
    with pytest.raises(CacheMissing, match=rf"^{copy}: expected a cache, found no {INDEX_FILE}$"):
        ShardCache(copy)
    (fault,) = require_only(copy, 21)
    assert f"found no {INDEX_FILE}" in str(fault)


def other_column(index):
    batch = pa.RecordBatch.from_pydict({"pair_id": index.pair_id, "chosen": index.chosen})
    return file_of(batch)


def with_nulls(index):
    arrays = {name: pa.array(getattr(index, name)) for name in RowIndex.__slots__}
    arrays["pair_id"] = pa.array([None, *index.pair_id[1:].tolist()], pa.int64())
    return file_of(pa.RecordBatch.from_pydict(arrays, schema=INDEX_SCHEMA))  # which says that there are none


def fewer_rows(index):
    return RowIndex(**{name: getattr(index, name)[:-1] for name in RowIndex.__slots__}).encoded()


def file_of(batch):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (other_column, "expected the columns of format version 3, got others"),
        (with_nulls, "expected the columns of format version 3, got others"),
        (fewer_rows, "expected 8 rows, got 7"),
        (lambda index: b"no Arrow file", "expected an Arrow IPC file, got "),
    ],
)
def test_an_index_that_the_plan_names_but_that_is_none_is_refused(fake, tmp_path, content, text):
    made = content(index_of(fake.responses))
    (tmp_path / INDEX_FILE).write_bytes(made)
    plan = replace(fake.plan, index_sha256=hashlib.sha256(made).hexdigest())
    with pytest.raises(CacheDamaged) as error:
        read_index(tmp_path, plan)
    assert str(error.value).startswith(f"{tmp_path / INDEX_FILE}: {text}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("column", RowIndex.__slots__)
def test_rule_21_finds_an_index_that_differs_from_the_shards(fake, tmp_path, monkeypatch, column):
    import fake_cache

    right = index_of(fake.responses)
    values = getattr(right, column).copy()
    values[6] = not values[6] if column == "chosen" else values[6] + 1
    wrong = replace(right, **{column: values})
    monkeypatch.setattr(fake_cache, "index_of", lambda responses: wrong)
    write_cache(tmp_path, fake.plan, fake.vocabulary, fake.responses)
    (fault,) = require_only(tmp_path, 21)
    got, expected = values[6], getattr(right, column)[6]
    assert str(fault).startswith(
        f"{tmp_path}/part-00001.arrow row 6: {column}: expected {expected} in the index, got {got}"
    )


BEGUN = {"responses": "both", "top_k": 5, "max_top_k": 12, "tokens_per_shard": 40}


@pytest.mark.parametrize("content", [None, b"something else"])
def test_a_begun_build_without_its_index_or_with_a_damaged_one_makes_it_again(
    trio_folders, pairs_file, tmp_path, sparse_cache, content
):
    out = shutil.copytree(sparse_cache.folder, tmp_path / "cache")
    (out / "manifest.json").unlink()
    (out / INDEX_FILE).unlink()
    if content is not None:
        (out / INDEX_FILE).write_bytes(content)
    build(build_options(trio_folders, pairs_file, out, **BEGUN))
    for path in sparse_cache.folder.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()


def test_a_begun_build_whose_plan_names_another_index_is_refused_and_left_as_it_is(
    trio_folders, pairs_file, tmp_path, sparse_cache
):
    out = shutil.copytree(sparse_cache.folder, tmp_path / "cache")
    (out / "manifest.json").unlink()
    (out / INDEX_FILE).write_bytes(b"another")
    sha256 = hashlib.sha256(b"another").hexdigest()
    plan = replace(read_plan(out / PLAN_FILE), index_sha256=sha256)
    (out / PLAN_FILE).write_bytes(plan_bytes(plan))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(CacheDamaged, match=rf"^{out}: expected an index with sha256 {sha256}, got another "):
        build(build_options(trio_folders, pairs_file, out, **BEGUN))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("file", ["vocabulary.json", "tokenizer.json"])
def test_a_begun_build_with_an_altered_file_of_the_tokenizer_is_refused_before_the_work(
    trio_folders, pairs_file, tmp_path, sparse_cache, file
):
    out = shutil.copytree(sparse_cache.folder, tmp_path / "cache")
    (out / "manifest.json").unlink()
    (out / file).write_bytes((out / file).read_bytes().replace(b"cat", b"bat"))
    with pytest.raises(CacheDamaged, match=rf"^{out}/{file}: expected what the tokenizer gives"):
        build(build_options(trio_folders, pairs_file, out, **BEGUN))


def test_a_command_ends_in_one_line_where_the_index_is_damaged(copy):
    (copy / INDEX_FILE).write_bytes(b"x")
    command = [sys.executable, "-m", "shards.learn", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {copy / INDEX_FILE}: expected sha256 ") and done.stderr.count("\n") == 1


def test_the_plan_names_the_index(fake):
    assert f'"index_sha256": "{fake.plan.index_sha256}"' in (fake.folder / PLAN_FILE).read_text()
