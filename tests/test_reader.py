"""Reading a cache: any order and any selection give the same values, and damaged values are never returned."""

import json
import multiprocessing
import pickle
import re
import shutil

import numpy as np
import pyarrow as pa
import pytest
from fake_cache import make_cache
from faults import edit_manifest
from test_codec import require_equal

from shards import ShardCache, TeacherSpec
from shards.errors import AlignDistilError, CacheDamaged, CacheMissing
from shards.format import schema
from shards.format.encoding import arrays
from shards.format.manifest import MANIFEST_FILE, PLAN_FILE, read_plan
from shards.format.schema import Pair


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def copy(fake, tmp_path):
    """A copy of the cache's folder that a test may damage."""
    return shutil.copytree(fake.folder, tmp_path / "cache")


@pytest.fixture(scope="module")
def cache(fake):
    return ShardCache(fake.folder)


def test_every_row_by_number_equals_what_was_written(fake, cache):
    assert len(cache) == len(fake.responses) == 10
    for row, expected in enumerate(fake.responses):
        require_equal(cache[row], expected)
        require_equal(cache[row - len(cache)], expected)
    assert [response.sample_id for response in cache] == [response.sample_id for response in fake.responses]


def test_rows_come_in_the_order_asked_for_across_shards_and_twice_if_asked_for(fake, cache):
    rows = [9, 0, 5, 5, 3, 8]
    for found, row in zip(cache.read(rows), rows, strict=True):
        require_equal(found, fake.responses[row])


@pytest.mark.parametrize("row", [10, -11, 1000])
def test_a_row_that_is_not_there_is_an_index_error(cache, row):
    with pytest.raises(IndexError, match="expected a row under 10"):
        cache[row]
    with pytest.raises(IndexError, match="expected a row under 10"):
        cache.read([0, row])


def test_some_columns_give_their_values_and_no_others(fake, cache):
    (found,) = cache.read([6], roles=("dpo", "reference"), pairs=(Pair("reference", "reference"),))
    expected = fake.responses[6].scores
    assert set(found.scores.next_logprob) == {"dpo", "reference"}
    assert set(found.scores.tail_logpartition) == {Pair("reference", "reference")}
    np.testing.assert_array_equal(found.scores.logprobs["dpo"], expected.logprobs["dpo"])
    np.testing.assert_array_equal(found.scores.l1_distance["reference"], expected.l1_distance["reference"])


def test_the_index_tells_pairs_and_lengths_of_all_rows(fake, cache):
    assert cache.index.pair_id.tolist() == [r.pair_id for r in fake.responses]
    assert cache.index.chosen.tolist() == [r.chosen for r in fake.responses]
    assert cache.index.num_tokens.tolist() == [len(r.input_ids) for r in fake.responses]
    assert cache.index.num_positions.tolist() == [r.scores.num_positions for r in fake.responses]


def test_vocabulary_and_provenance_are_read_as_written(fake, cache):
    assert cache.vocabulary == fake.vocabulary
    assert cache.provenance["models"]["dpo"] == "/models/dpo"


def test_a_pickled_cache_reads_the_same_values(fake, cache):
    cache.read(range(10))  # with files open
    require_equal(pickle.loads(pickle.dumps(cache))[7], fake.responses[7])


def _read_in_child(cache, rows, results):
    results.put([cache[row].scores.logprobs["dpo"].tobytes() for row in rows])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_processes_and_their_parent_read_the_same_values_at_once(fake, cache):
    context = multiprocessing.get_context("fork")
    results, rows = context.SimpleQueue(), list(range(10)) * 5
    expected = [fake.responses[row].scores.logprobs["dpo"].tobytes() for row in rows]
    cache.read(range(10))  # with files open, that the children inherit
    children = [context.Process(target=_read_in_child, args=(cache, rows, results)) for _ in range(2)]
    for child in children:
        child.start()
    assert [cache[row].scores.logprobs["dpo"].tobytes() for row in rows] == expected
    assert [results.get() for _ in children] == [expected, expected]
    for child in children:
        child.join()


def require_one_line(error, path):
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert isinstance(error.value, AlignDistilError)
    assert isinstance(error.value, OSError)


def test_a_missing_shard_is_named_when_the_cache_is_opened(copy):
    (copy / "part-00001.arrow").unlink()
    with pytest.raises(CacheMissing, match=r"expected a shard of .* bytes, found no file") as error:
        ShardCache(copy)
    require_one_line(error, copy / "part-00001.arrow")


def test_a_shard_of_another_size_is_named_when_the_cache_is_opened(copy):
    path = copy / "part-00001.arrow"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CacheDamaged, match=r"expected .* bytes, got") as error:
        ShardCache(copy)
    require_one_line(error, path)


def fix_size(folder, file):
    """Write the file's current size into the manifest."""
    size = (folder / file).stat().st_size
    edit_manifest(folder, lambda m: [shard.update(bytes=size) for shard in m["shards"] if shard["file"] == file])


@pytest.mark.parametrize("kept", [0, 7, 1000, -1, -100])
def test_a_shard_cut_short_is_refused_whatever_its_recorded_size(copy, kept):
    path = copy / "part-00000.arrow"
    path.write_bytes(path.read_bytes()[:kept])
    fix_size(copy, path.name)
    with pytest.raises(CacheDamaged) as error:
        ShardCache(copy).read(range(4))
    require_one_line(error, path)


def test_a_flipped_byte_anywhere_in_a_shard_is_refused_or_changes_no_value(fake, copy):
    path = copy / "part-00000.arrow"
    content = bytearray(path.read_bytes())
    generator = np.random.default_rng(0)
    refused = 0
    for place in range(0, len(content), 37):
        mask = int(generator.integers(1, 256))
        content[place] ^= mask
        path.write_bytes(content)
        content[place] ^= mask
        try:
            found = ShardCache(copy).read(range(4))
        except CacheDamaged as error:
            assert "\n" not in str(error)
            assert str(path) in str(error)
            refused += 1
        else:
            for response, expected in zip(found, fake.responses, strict=False):
                require_equal(response, expected)
    assert refused > 300


def rewritten(path, change):
    """Write a shard again, with its record batches and their metadata changed."""
    file = pa.ipc.open_file(pa.OSFile(str(path), "rb"))
    batches = [file.get_batch_with_custom_metadata(i) for i in range(file.num_record_batches)]
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, file.schema) as writer:
        for batch, metadata in change([(found.batch, found.custom_metadata) for found in batches]):
            writer.write_batch(batch, custom_metadata=metadata)


def test_values_changed_under_a_valid_arrow_file_are_refused_by_column(copy):
    path = copy / "part-00000.arrow"

    def change(batches):
        for batch, metadata in batches:
            at = batch.schema.get_field_index(schema.PAIR_ID)
            yield batch.set_column(at, batch.schema.field(at), pa.array([7] * batch.num_rows, pa.int64())), metadata

    rewritten(path, change)
    fix_size(copy, path.name)
    with pytest.raises(CacheDamaged, match="record batch 0 column pair_id: expected crc32") as error:
        ShardCache(copy)[0]
    require_one_line(error, path)


def test_a_record_batch_with_fewer_rows_is_refused(copy):
    path = copy / "part-00000.arrow"

    def change(batches):
        for batch, _ in batches:
            yield batch.slice(0, 1), arrays.batch_metadata(batch.slice(0, 1), 0)

    rewritten(path, change)
    fix_size(copy, path.name)
    with pytest.raises(CacheDamaged, match="record batch 0: expected 2 rows, got 1") as error:
        ShardCache(copy)[1]
    require_one_line(error, path)


def test_a_missing_record_batch_is_refused(copy):
    path = copy / "part-00000.arrow"
    rewritten(path, lambda batches: batches[:1])
    fix_size(copy, path.name)
    cache = ShardCache(copy)
    cache.read([0, 1])
    with pytest.raises(CacheDamaged, match="record batch 1: expected a readable record batch") as error:
        cache.read([2])
    require_one_line(error, path)


def test_a_shard_of_another_build_is_refused(copy, tmp_path):
    make_cache(tmp_path / "other", seed=1)
    path = copy / "part-00000.arrow"
    shutil.copy(tmp_path / "other" / path.name, path)
    fix_size(copy, path.name)
    with pytest.raises(
        CacheDamaged, match=r"expected a shard of build [0-9a-f]{12}, got one of [0-9a-f]{12}$"
    ) as error:
        ShardCache(copy)[0]
    require_one_line(error, path)


def test_a_shard_with_other_columns_is_refused(copy, tmp_path):
    make_cache(tmp_path / "other", roles=("dpo", "reference"))
    path = copy / "part-00000.arrow"
    shutil.copy(tmp_path / "other" / path.name, path)
    fix_size(copy, path.name)
    with pytest.raises(CacheDamaged, match=r"expected the columns of format version 3, got .* belongs$") as error:
        ShardCache(copy)[0]
    require_one_line(error, path)


def test_a_shard_that_vanishes_under_an_open_cache_is_named(copy):
    cache = ShardCache(copy)
    (copy / "part-00001.arrow").unlink()
    cache[0]
    with pytest.raises(CacheDamaged) as error:
        cache[9 - 4]
    require_one_line(error, copy / "part-00001.arrow")


def test_a_folder_without_a_manifest_is_no_cache(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CacheMissing, match=r"expected a cache, found no manifest.json$") as error:
            ShardCache(folder)
        require_one_line(error, folder)


def test_a_file_in_place_of_the_folder_is_no_cache(tmp_path):
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(CacheMissing) as error:
        ShardCache(path)
    require_one_line(error, path)


def test_a_build_that_was_begun_is_no_cache_and_the_message_says_so(copy):
    (copy / MANIFEST_FILE).unlink()
    with pytest.raises(CacheMissing, match=r"found a build that was begun; run it again to finish$") as error:
        ShardCache(copy)
    require_one_line(error, copy)


def edited(changes):
    def edit(manifest):
        return json.dumps({**manifest, **changes})

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        lambda manifest: json.dumps(manifest)[:-9],
        lambda manifest: "[]",
        lambda manifest: "\x00",
        lambda manifest: json.dumps({key: value for key, value in manifest.items() if key != "pairs"}),
        edited({"format": "another"}),
        edited({"format_version": 1}),
        edited({"vocabulary_size": 25}),
        edited({"vocabulary_size": float("inf")}),
        edited({"log_threshold": float("nan")}),
        edited({"rows_per_batch": "x"}),
        edited({"shards": 3}),
        edited({"shards": [{"file": "part-00000.arrow"}]}),
        edited({"pairs": ["dpo/dpo"]}),
        edited({"gain_nodes": [0.0, 2.0, 1.0]}),
        edited({"gain_nodes": "abc"}),
        edited({"build_sha256": "0" * 64}),
        lambda manifest: json.dumps(manifest).replace('"rows": 4', '"rows": "x"'),
        lambda manifest: json.dumps(manifest).replace('"vocabulary_size": 24', '"vocabulary_size": 1e999'),
        lambda manifest: re.sub(r'"bytes": \d+', '"bytes": 1e999', json.dumps(manifest)),
        lambda manifest: json.dumps(manifest | {"rows": manifest["rows"] + 1}),
        lambda manifest: json.dumps(manifest | {"positions": manifest["positions"] + 1}),
        lambda manifest: json.dumps(manifest | {"note": "mine"}),
    ],
)
def test_an_altered_manifest_is_refused(copy, edit):
    path = copy / MANIFEST_FILE
    path.write_text(edit(json.loads(path.read_text())))
    with pytest.raises(CacheDamaged) as error:
        ShardCache(copy)
    require_one_line(error, path)


def test_a_missing_vocabulary_is_named(copy):
    (copy / "vocabulary.json").unlink()
    with pytest.raises(CacheMissing, match=r"found no vocabulary.json$"):
        _ = ShardCache(copy).vocabulary


def test_only_the_columns_that_are_read_must_be_sound(copy, fake):
    """A reader of some columns ignores damage in others, and a reader of all does not."""
    path = copy / "part-00000.arrow"
    name = schema.tail_logpartition_column(Pair("dpo", "reverse"))

    def change(batches):
        for batch, metadata in batches:
            sums = json.loads(metadata[schema.CRC32_KEY])
            yield batch, {**metadata, schema.CRC32_KEY: json.dumps({**sums, name: 0}).encode()}

    rewritten(path, change)
    fix_size(copy, path.name)
    cache = ShardCache(copy)
    cache.teacher([0], TeacherSpec.preset("adaptive"))
    with pytest.raises(CacheDamaged, match=f"column {name}"):
        cache.teacher([0], TeacherSpec.preset("aligndistil"))


def test_the_plan_alone_is_what_the_manifest_was_planned_as(fake):
    assert read_plan(fake.folder / PLAN_FILE).to_json() == fake.plan.to_json() == ShardCache(fake.folder).plan.to_json()


def test_record_batches_that_changed_places_are_noticed(copy):
    path = copy / "part-00000.arrow"
    rewritten(path, lambda batches: [batches[1], batches[0], *batches[2:]])
    fix_size(copy, path.name)
    with pytest.raises(CacheDamaged, match="expected the batch that begins with row 0, got 2") as error:
        ShardCache(copy)[0]
    require_one_line(error, path)
