"""No work per row or per shard grows with the number of shards: counted, not timed."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from fake_cache import make_cache, write_cache
from faults import edit_manifest, manifest_fields, write_fields

import shards.format.plan
from shards import ShardCache
from shards.errors import CacheDamaged
from shards.format.content.rules import RESPONSE_KINDS
from shards.format.finishing import Findings, finished
from shards.format.index import INDEX_FILE
from shards.format.manifest import MANIFEST_FILE, PLAN_FILE
from shards.format.plan import Plan
from shards.format.writer import write_json
from shards.verify.__main__ import verify
from shards.verify.names import SeenNames


@pytest.fixture(scope="module")
def few_and_many(tmp_path_factory):
    """The same twenty rows in two shards and in twenty."""
    folder = tmp_path_factory.mktemp("many")
    return {rows: make_cache(folder / str(rows), pairs=10, rows_per_shard=rows) for rows in (10, 1)}


@pytest.fixture
def passes(monkeypatch):
    """Counts passes over all shards: hashes of plans, and sums over their shards."""
    counts = {"hashed": 0, "summed": 0}
    plain_hash, plain_sum = shards.format.plan.canonical_json, sum

    def hashed(value):
        counts["hashed"] += "shards" in value
        return plain_hash(value)

    def summed(*args):
        counts["summed"] += 1
        return plain_sum(*args)

    monkeypatch.setattr(shards.format.plan, "canonical_json", hashed)
    monkeypatch.setattr(shards.format.plan, "sum", summed, raising=False)
    return counts


def test_a_plan_is_hashed_and_summed_once_however_many_shards_are_read(few_and_many, passes):
    cache = ShardCache(few_and_many[1].folder)
    generator = np.random.default_rng(0)
    for _ in range(3):
        rows = generator.permutation(len(cache)).tolist()
        assert [r.sample_id for r in cache.read(rows)] == [few_and_many[1].responses[row].sample_id for row in rows]
        assert cache[3].sample_id == few_and_many[1].responses[3].sample_id
    assert passes == {"hashed": 1, "summed": 2}, "the sums are rows and positions"


def test_verifying_and_finishing_pass_over_the_plan_as_often_for_many_shards_as_for_few(few_and_many, passes):
    counts = []
    for fake in few_and_many.values():
        passes.update(hashed=0, summed=0)
        assert list(verify(fake.folder)) == []
        plan = replace(fake.plan)
        findings = Findings.nothing(plan)
        for number in range(len(plan.shards)):
            findings.read_back(fake.folder, plan, number)
        finished(fake.folder, plan, [findings])
        counts.append(dict(passes))
    assert counts[0] == counts[1]


def test_the_names_of_all_shards_are_gathered_once_to_look_for_strays(tmp_path, monkeypatch):
    from shards.verify.__main__ import folder_rules

    fake = make_cache(tmp_path, pairs=4, rows_per_shard=1)
    looked = []

    class Counted(tuple):
        def __iter__(self):
            looked.append(1)
            return super().__iter__()

    plan = replace(fake.plan, shards=Counted(fake.plan.shards))
    assert list(folder_rules.stray_files(plan, tmp_path)) == []
    assert len(looked) == 1


def test_a_shard_is_opened_once_to_be_read(few_and_many, monkeypatch):
    opened = []
    plain = pa.OSFile

    def counting(path, *args):
        opened.append(os.path.basename(path))  # noqa: PTH119
        return plain(path, *args)

    monkeypatch.setattr(pa, "OSFile", counting)
    ShardCache(few_and_many[1].folder).read([4, 17])
    assert opened == ["part-00004.arrow", "part-00017.arrow"]


def test_a_table_of_shards_that_differs_is_not_printed_as_a_whole(few_and_many, tmp_path):
    fake = few_and_many[1]
    folder = shutil.copytree(fake.folder, tmp_path / "copy")
    plan = json.loads((folder / PLAN_FILE).read_text())
    plan["shards"][7]["surplus"] = 1
    write_json(folder, PLAN_FILE, plan)
    assert [str(f) for f in verify(folder)] == [
        f"{folder}/plan.json: shards[7].surplus: expected null, got 1 [rule 2: plan]"
    ]
    write_json(folder, PLAN_FILE, {**plan, "shards": plan["shards"][:7]})
    assert [str(f) for f in verify(folder)] == [
        f"{folder}/plan.json: shards: expected 20 entries, got 7 entries [rule 2: plan]"
    ]


# ---- finishing


def test_however_the_shards_are_dealt_out_the_manifest_is_the_same(few_and_many):
    fake = few_and_many[1]
    expected = manifest_fields(fake.folder)
    generator = np.random.default_rng(0)
    for processes in (1, 2, 5):
        numbers = generator.permutation(len(fake.plan.shards))
        parts = []
        for share in np.array_split(numbers, processes):
            findings = Findings.nothing(fake.plan)
            for number in share.tolist():
                findings.read_back(fake.folder, fake.plan, number)
            parts.append(findings)
        assert finished(fake.folder, fake.plan, parts).to_json() == expected
        assert finished(fake.folder, fake.plan, parts[::-1]).to_json() == expected


def test_the_sums_of_the_shards_are_added_up_exactly(few_and_many):
    fake = few_and_many[1]
    findings = Findings.nothing(fake.plan)
    for number in range(20):
        findings.read_back(fake.folder, fake.plan, number)
        findings.shards[number].totals["support_count"] = (1e17, 1.0, -1e17, 0.0)[number % 4]
    found = finished(fake.folder, fake.plan, [findings])
    assert found.statistics["support_count"]["mean"] == round(5 / fake.plan.positions, 6)


def test_a_damaged_shard_does_not_get_into_a_manifest(tmp_path):
    fake = make_cache(tmp_path, pairs=2, rows_per_shard=1)
    path = tmp_path / "part-00002.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(CacheDamaged, match=r"part-00002\.arrow"):
        for number in range(4):
            Findings.nothing(fake.plan).read_back(tmp_path, fake.plan, number)


def test_a_damaged_index_does_not_get_into_a_manifest(tmp_path):
    fake = make_cache(tmp_path, pairs=2)
    findings = Findings.nothing(fake.plan)
    findings.read_back(tmp_path, fake.plan, 0)
    (tmp_path / INDEX_FILE).write_bytes(b"x")
    with pytest.raises(CacheDamaged, match=r"index\.arrow: expected sha256 "):
        finished(tmp_path, fake.plan, [findings])


# ---- names


def test_names_that_come_twice_are_found_as_a_dictionary_finds_them(few_and_many):
    (response, *_), generator = few_and_many[1].responses, np.random.default_rng(3)
    seen, first_by_name, expected = SeenNames(), {}, []
    for row in range(0, 600, 2):  # numbers of rows may leave gaps: rows with other faults
        pair_id, kind = int(generator.integers(60)), RESPONSE_KINDS[generator.integers(3)]
        name = f"{pair_id}/{kind}"
        seen.add(replace(response, sample_id=name, pair_id=pair_id), row)
        first = first_by_name.setdefault(name, row)
        if first != row:
            expected.append((row, name, first))
    assert list(seen.repeated()) == expected
    assert len(expected) > 100
    assert list(SeenNames().repeated()) == []


def test_names_take_seventeen_bytes_a_row():
    seen = SeenNames()
    assert sum(column.itemsize for column in vars(seen).values()) == 17


def test_names_that_come_twice_far_apart_are_told_with_both_rows(few_and_many, tmp_path):
    fake = few_and_many[1]
    responses = list(fake.responses)
    for row in (13, 18):
        responses[row] = replace(responses[row], sample_id="2/chosen", pair_id=2, chosen=True)
    write_cache(tmp_path, fake.plan, fake.vocabulary, responses)
    text = "('2/chosen'): sample_id: expected a name of its own, got that of row 4 [rule 9: names]"
    assert [str(fault) for fault in verify(tmp_path)] == [
        f"{tmp_path}/part-00013.arrow row 13 {text}",
        f"{tmp_path}/part-00018.arrow row 18 {text}",
    ]


def test_a_name_that_contradicts_its_pair_is_one_fault_and_repeats_no_other(few_and_many, tmp_path):
    fake = few_and_many[1]
    responses = list(fake.responses)
    responses[13] = replace(responses[13], pair_id=2)  # row 5 is 2/rejected
    write_cache(tmp_path, fake.plan, fake.vocabulary, responses)
    assert [str(fault) for fault in verify(tmp_path)] == [
        f"{tmp_path}/part-00013.arrow row 13 ('6/rejected'): sample_id: expected one of 2/chosen, 2/rejected, "
        "2/completion, got '6/rejected' [rule 9: names]"
    ]


# ---- what no build can have planned


def planned(plan, shard=0, **changed):
    if "rows_per_batch" in changed:
        return replace(plan, **changed)
    shards_ = list(plan.shards)
    shards_[shard] = replace(shards_[shard], **changed)
    return replace(plan, shards=tuple(shards_))


ILLEGAL = {
    "a file outside": (dict(file="../part-00000.arrow"), "shards: expected part-00000.arrow from row 0, got "),
    "an absolute file": (dict(file="/etc/passwd"), "shards: expected part-00000.arrow from row 0, got "),
    "no rows a batch": (dict(rows_per_batch=0), "rows_per_batch: expected a legal value, got 0"),
    "negative rows a batch": (dict(rows_per_batch=-1), "rows_per_batch: expected a legal value, got -1"),
    "a hole": (dict(shard=1, first_row=5), "shards: expected part-00001.arrow from row 4, got "),
    "no row": (dict(shard=1, rows=0), "shards: expected part-00001.arrow from row 4, got "),
}


@pytest.mark.parametrize("name", ILLEGAL)
def test_a_manifest_or_plan_that_no_build_made_is_refused_by_every_reader(tmp_path, name):
    fake = make_cache(tmp_path, pairs=4)
    changed, text = ILLEGAL[name]
    plan = planned(fake.plan, **changed)
    manifest = manifest_fields(tmp_path)
    entries = [{k: s[k] for k in ("entries", "bytes", "sha256", "crc32")} for s in manifest["shards"]]
    table = [{**shard, **entry} for shard, entry in zip(plan.to_json()["shards"], entries, strict=True)]
    manifest = {**manifest, **plan.to_json(), "build_sha256": plan.sha256, "shards": table}
    write_fields(tmp_path, manifest)
    write_json(tmp_path, PLAN_FILE, plan.to_json())
    with pytest.raises(CacheDamaged) as error:
        ShardCache(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / MANIFEST_FILE}: {text}")
    (tmp_path / MANIFEST_FILE).unlink()
    with pytest.raises(CacheDamaged) as error:
        Plan.from_json(json.loads((tmp_path / PLAN_FILE).read_text()), str(tmp_path / PLAN_FILE))
    assert str(error.value).startswith(f"{tmp_path / PLAN_FILE}: {text}")


COMMANDS = ("shards.inspect", "shards.learn")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_end_in_one_line_for_a_shard_outside_of_the_folder(tmp_path, command):
    fake = make_cache(tmp_path / "cache", pairs=1)
    edit_manifest(fake.folder, lambda manifest: manifest["shards"][0].update(file="../part-00000.arrow"))
    run = [sys.executable, "-m", command, str(fake.folder)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{MANIFEST_FILE}: shards: expected part-00000.arrow from row 0, got" in done.stderr


HOSTILE = {
    "statistics are a list": lambda m: m.update(statistics=[1]),
    "statistics are none": lambda m: m.update(statistics={}),
    "a statistic is text": lambda m: m["statistics"]["support_count"].update(mean="x"),
    "a statistic is no mapping": lambda m: m["statistics"].update(support_count=3),
    "bytes are text": lambda m: m["shards"][0].update(bytes="many"),
    "a shard is a number": lambda m: m["shards"].append(3),
    "no index": lambda m: m.pop("index_sha256"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_manifest_of_other_types_is_refused_in_one_line(tmp_path, name):
    make_cache(tmp_path, pairs=1)
    edit_manifest(tmp_path, HOSTILE[name])
    with pytest.raises(CacheDamaged) as error:
        ShardCache(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / MANIFEST_FILE}: expected ")
    assert "\n" not in str(error.value)


def test_json_nested_without_end_is_refused_in_one_line(tmp_path):
    make_cache(tmp_path, pairs=1)
    (tmp_path / MANIFEST_FILE).write_text("".join(itertools.repeat("[", 200_000)))
    with pytest.raises(CacheDamaged, match=r"manifest\.json: expected JSON, got "):
        ShardCache(tmp_path)
