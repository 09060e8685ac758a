"""Sums and seals: an edit is found when a file is read, and `shards.verify` names the one flipped bit and its place."""

import json
import random

import pytest
from fake_cache import make_cache
from faults import edit_manifest, require_only

from shards import ShardCache
from shards.errors import CacheDamaged
from shards.files import sums_of
from shards.format.batches import ShardOpener
from shards.format.encoding.seal import sealed
from shards.format.finishing import Findings, finished
from shards.format.manifest import read_manifest, read_plan
from shards.format.writer import json_bytes
from shards.verify.__main__ import verify
from shards.verify.flipped import Flip, flip_by_sums, flip_of_sealed
from shards.verify.located import in_json

PART = "part-00000.arrow"


@pytest.fixture
def fake(tmp_path):
    return make_cache(tmp_path, pairs=2)


def flip(path, byte, bit):
    path.write_bytes(Flip(byte, bit).undone(path.read_bytes()))


@pytest.mark.parametrize("size", [1, 7, 1000, 200_000])
def test_the_one_flipped_bit_is_found_wherever_it_is(size):
    content = random.Random(size).randbytes(size)
    sums = sums_of(content)
    for byte in sorted({0, size // 3, size - 1}):
        for bit in range(8):
            assert flip_by_sums(Flip(byte, bit).undone(content), sums) == Flip(byte, bit)


def test_two_flipped_bits_or_another_size_are_not_taken_for_one():
    content = random.Random(0).randbytes(1000)
    sums = sums_of(content)
    assert flip_by_sums(Flip(0, 0).undone(Flip(999, 7).undone(content)), sums) is None
    assert flip_by_sums(content[:-1], sums) is None and flip_by_sums(content, sums) is None


def test_a_flipped_bit_of_a_sealed_file_is_found_in_its_text_and_in_its_seal():
    content = sealed(json_bytes({"rows": 4, "name": "é"}))
    for place in range(8 * len(content)):
        assert flip_of_sealed(Flip(*divmod(place, 8)).undone(content)) == Flip(*divmod(place, 8))
    assert flip_of_sealed(content.replace(b'"rows": 4', b'"rows": 3')) is None, "4 and 3 differ in three bits"


@pytest.mark.parametrize(("value", "field"), [(b"12", "shards[1].a[1]"), (b"7", "shards[0].b.c"), (b"true", "d")])
def test_a_place_in_a_json_file_is_named_by_its_field(value, field):
    content = json_bytes({"shards": [{"a": 1, "b": {"c": 7}}, {"a": [5, 12]}], "d": True})
    assert in_json(content, Flip(content.index(value), 0)) == f"in {field}"


@pytest.mark.parametrize("old", [b'"truncated": 2', b'"device": "cpu"', b'"log_threshold"', b'"mean"', b"\n", b"e"])
def test_an_edit_anywhere_in_a_manifest_is_found_at_opening(fake, old):
    path = fake.folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(old, old + b" ", 1))
    with pytest.raises(CacheDamaged, match=r"manifest\.json: expected") as error:
        ShardCache(fake.folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["files", "crc32", "seal"])
def test_sums_cannot_be_taken_out_one_by_one(fake, key):
    if key == "seal":
        fields = json.loads((fake.folder / "manifest.json").read_text())
        fields = {name: value for name, value in fields.items() if not name.startswith("content_")}
        (fake.folder / "manifest.json").write_bytes(json_bytes(fields))
    elif key == "files":
        edit_manifest(fake.folder, lambda manifest: manifest.pop("files"))
    else:
        edit_manifest(fake.folder, lambda manifest: manifest["shards"][0].pop("crc32"))
    with pytest.raises(CacheDamaged, match="expected files, crc32 of shards and a content_sha256, or none of them"):
        ShardCache(fake.folder)


def test_a_cache_without_sums_is_an_older_one_and_stays_readable(fake):
    fields = json.loads((fake.folder / "manifest.json").read_text())
    fields = {name: value for name, value in fields.items() if name not in ("content_crc32", "content_sha256", "files")}
    for shard in fields["shards"]:
        del shard["crc32"]
    (fake.folder / "manifest.json").write_bytes(json_bytes(fields))
    for file, value in (("plan.json", fake.plan.to_json()), ("provenance.json", {"models": {}, "data": "d"})):
        (fake.folder / file).write_bytes(json_bytes(value))
    cache = ShardCache(fake.folder)
    assert len(cache.read(range(len(cache)))) == 4
    assert cache.vocabulary == fake.vocabulary and cache.provenance["data"] == "d"
    flip(fake.folder / "vocabulary.json", 5, 0)
    with pytest.raises(CacheDamaged, match="expected a map with sha256"):
        _ = ShardCache(fake.folder).vocabulary


def test_verify_names_bit_column_and_row(fake):
    path = fake.folder / PART
    opened = ShardOpener(fake.plan).open(path)
    buffers = opened.form.read(opened.source, opened.blocks[1], fake.plan.most_values(0, 1))
    byte = next(buffer.offset + 20 for buffer in buffers if (buffer.column, buffer.part) == ("support_ids", "values"))
    flip(path, byte, 3)
    found = [str(fault) for fault in verify(fake.folder)]
    text = f"bit 3 of byte {byte:,} was flipped, in record batch 1, column support_ids, row"
    assert any(text in fault and "[rule 5: shard]" in fault for fault in found)


def test_verify_names_column_and_row_of_a_bit_of_the_index(fake):
    path = fake.folder / "index.arrow"
    content, lengths = path.read_bytes(), ShardCache(fake.folder).index.num_tokens
    byte = content.index(lengths.tobytes())
    flip(path, byte + 4 * 2 + 1, 7)
    (fault,) = require_only(fake.folder, 21)
    assert f"bit 7 of byte {byte + 9:,} was flipped, in column num_tokens, row 2" in str(fault)


BESIDE = {"plan.json": 2, "vocabulary.json": 3, "manifest.json": 1, "provenance.json": 22, "index.arrow": 21}


@pytest.mark.parametrize("file", BESIDE)
def test_verify_names_the_bit_of_every_other_file(fake, file):
    flip(fake.folder / file, 30, 1)
    (fault,) = require_only(fake.folder, BESIDE[file])
    assert "bit 1 of byte 30 was flipped" in str(fault)


def finish(folder):
    plan = read_plan(folder / "plan.json")
    findings = Findings.nothing(plan)
    for shard in range(len(plan.shards)):
        findings.read_back(folder, plan, shard, earlier=True)
    return finished(folder, plan, [findings])


def test_a_build_that_goes_on_refuses_a_flipped_bit_anywhere_in_what_is_there(fake):
    before = read_manifest(fake.folder)
    (fake.folder / "manifest.json").unlink()
    assert finish(fake.folder) == before
    for file, step in ((PART, 611), ("plan.json", 173), ("vocabulary.json", 97), ("index.arrow", 311)):
        content = (fake.folder / file).read_bytes()
        for byte in range(0, len(content), step):
            flip(fake.folder / file, byte, byte % 8)
            with pytest.raises(CacheDamaged):
                finish(fake.folder)
            (fake.folder / file).write_bytes(content)
