"""`python -m shards.verify`: a sound cache passes, and every rule of docs/format.md finds its planted fault."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from fake_cache import make_cache, plan_shards, rewrite, write_cache
from faults import (
    CONTRAST,
    ROW_FAULTS,
    V,
    changed,
    drop_last,
    edit_manifest,
    fix_entry,
    has_a_position_of_every_kind,
    require_only,
    rewrite_shard,
    set_entry,
    swap_first_ids,
)

from shards.format import schema
from shards.format.encoding import arrays
from shards.format.manifest import MANIFEST_FILE
from shards.format.plan import json_sha256
from shards.format.schema import Pair
from shards.format.writer import write_json
from shards.verify.__main__ import MAX_PRINTED, main, verify


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("verify") / "cache", vocabulary_size=V, pairs=4, response_tokens=40)


@pytest.fixture
def copy(fake, tmp_path):
    return shutil.copytree(fake.folder, tmp_path / "copy")


def run(*arguments):
    command = [sys.executable, "-m", "shards.verify", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_sound_cache_passes_with_exit_code_0(fake):
    done = run(fake.folder)
    assert (done.returncode, done.stdout) == (0, "8 rows, 2 shards: all checks hold\n")
    assert done.stderr == "", "nothing is drawn where there is no terminal"


@pytest.mark.parametrize(
    "options",
    [
        {"roles": ("dpo", "reference")},
        {"top_k": 5},
        {"top_k": V},
        {"served": [Pair("reference", "reverse"), Pair("dpo", "reference")]},
        {"vocabulary_size": 500, "top_k": 20, "rows_per_batch": 3},
    ],
    ids=str,
)
def test_sound_caches_of_other_kinds_pass(tmp_path, options):
    make_cache(tmp_path, pairs=2, **options)
    assert list(verify(tmp_path)) == []


def test_an_unsound_cache_fails_with_exit_code_1_and_a_line_for_each_fault(copy):
    (copy / "plan.json").unlink()
    shutil.copy(copy / "part-00000.arrow", copy / "part-00007.arrow")
    done = run(copy)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"{copy}: expected a cache, found no plan.json [rule 2: plan]",
        f"{copy}/part-00007.arrow: expected the manifest's 2 shards and no others [rule 4: files]",
    ]


@pytest.mark.parametrize("folder", ["missing", "."])
def test_a_folder_without_a_cache_fails_with_exit_code_1(tmp_path, folder):
    done = run(tmp_path / folder)
    assert done.returncode == 1
    assert re.fullmatch(r".*: expected a cache, found no manifest.json \[rule 1: manifest\]\n", done.stdout)


def test_many_faults_of_a_rule_are_printed_up_to_a_limit_and_the_rest_counted(tmp_path, capsys):
    fake = make_cache(tmp_path, pairs=13)
    write_cache(tmp_path, fake.plan, fake.vocabulary, [replace(r, chosen=not r.chosen) for r in fake.responses])
    with pytest.raises(SystemExit) as exit_code:
        main([str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert exit_code.value.code == 1
    assert len(lines) == MAX_PRINTED + 1
    assert lines[-1] == f"{tmp_path}: 6 more faults [rule 9: names]"


# ---- rules 1 to 8: files


MANIFEST_EDITS = {
    "rows": lambda m: m.update(rows=9),
    "positions": lambda m: m.update(positions=1),
    "build_sha256": lambda m: m.update(build_sha256="0" * 64),
    "truncated": lambda m: m.update(truncated=7),
    "statistics": lambda m: m.pop("statistics"),
    "surplus": lambda m: m.update(surplus=1),
    "identity": lambda m: m["identity"]["options"].update(top_k=9),
    "format_version": lambda m: m.update(format_version=1),
}


@pytest.mark.parametrize("key", MANIFEST_EDITS)
def test_rule_1_finds_a_manifest_whose_fields_contradict_each_other(copy, key):
    edit_manifest(copy, MANIFEST_EDITS[key])
    require_only(copy, 1)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": NaN}'])
def test_rule_1_finds_a_manifest_that_cannot_be_read(copy, content):
    (copy / MANIFEST_FILE).write_text(content)
    require_only(copy, 1)


PLAN_CHANGES = {
    "roles: one lacks": lambda p: {"roles": ("dpo", "reverse")},
    "roles: a negative lacks": lambda p: {"roles": ("dpo", "reference")},
    "roles: one twice": lambda p: {"roles": (*p.roles, "dpo")},
    "roles: an unknown one": lambda p: {"roles": (*p.roles, "judge")},
    "pairs: one twice": lambda p: {"pairs": (CONTRAST, CONTRAST)},
    "pairs: none": lambda p: {"pairs": ()},
    "values": lambda p: {"values": "float8"},
    "rows_per_batch": lambda p: {"rows_per_batch": 0},
    "vocabulary_size": lambda p: {"vocabulary_size": 0},
    "shards: none": lambda p: {"shards": ()},
    "shards: a hole": lambda p: {"shards": (p.shards[0], replace(p.shards[1], first_row=3))},
    "from row 0": lambda p: {"shards": p.shards[::-1]},
    "rows=0": lambda p: {"shards": (replace(p.shards[0], rows=0), p.shards[1])},
    "positions=1": lambda p: {"shards": (replace(p.shards[0], positions=1), p.shards[1])},
    "part-00001.arrow": lambda p: {"shards": (p.shards[0], replace(p.shards[1], file="../part-00001.arrow"))},
}


@pytest.mark.parametrize("named", PLAN_CHANGES)
def test_rule_1_finds_a_plan_that_cannot_be(fake, copy, named):
    plan = replace(fake.plan, **PLAN_CHANGES[named](fake.plan))
    manifest = json.loads((copy / MANIFEST_FILE).read_text())
    entries = [{k: s[k] for k in ("entries", "bytes", "sha256")} for s in manifest["shards"]]
    shards = [{**planned, **entry} for planned, entry in zip(plan.to_json()["shards"], entries, strict=False)]
    fields = {**plan.to_json(), "build_sha256": plan.sha256, "shards": shards, "statistics": manifest["statistics"]}
    write_json(copy, MANIFEST_FILE, fields)
    faults = require_only(copy, 1)
    assert named.partition(": ")[0] in str(faults[0])


def test_rule_2_finds_a_plan_that_is_missing_or_differs(copy):
    plan = json.loads((copy / "plan.json").read_text())
    write_json(copy, "plan.json", {**plan, "truncated": 3})
    (fault,) = require_only(copy, 2)
    assert "truncated: expected 2, got 3" in str(fault)
    (copy / "plan.json").write_text("{")
    require_only(copy, 2)
    (copy / "plan.json").unlink()
    require_only(copy, 2)


def test_rule_3_finds_a_vocabulary_that_is_missing_or_altered(fake, copy):
    write_json(copy, "vocabulary.json", {**fake.vocabulary, "word5": 6})
    require_only(copy, 3)
    (copy / "vocabulary.json").unlink()
    require_only(copy, 3)


@pytest.mark.parametrize("ids", [range(V - 1), range(V + 1), ["0", *range(1, V)], [-1, *range(1, V)], []])
def test_rule_3_finds_a_vocabulary_of_another_size(fake, tmp_path, ids):
    vocabulary = {f"word{i}": token_id for i, token_id in enumerate(ids)}
    digest = json_sha256(vocabulary)
    plan = replace(fake.plan, identity={**fake.plan.identity, "tokenizer": {"vocabulary_sha256": digest}})
    write_cache(tmp_path, plan, vocabulary, fake.responses)
    require_only(tmp_path, 3)


def test_rule_3_finds_an_identity_without_a_vocabulary(fake, tmp_path):
    plan = replace(fake.plan, identity={"tokenizer": None})
    write_cache(tmp_path, plan, fake.vocabulary, fake.responses)
    require_only(tmp_path, 3)


def test_rule_4_finds_a_shard_that_the_manifest_does_not_name(copy):
    (copy / "part-00002.arrow").touch()
    (fault,) = require_only(copy, 4)
    assert "part-00002.arrow" in str(fault)


def test_files_that_are_not_shards_are_left_alone(copy):
    (copy / "notes.txt").touch()
    (copy / "provenance.json").unlink()
    assert list(verify(copy)) == []


@pytest.mark.parametrize("wrong", [{"bytes": 3}, {"sha256": "0" * 64}])
def test_rule_5_finds_a_shard_of_another_size_or_sha256(copy, wrong):
    set_entry(copy, 1, **wrong)
    (fault,) = require_only(copy, 5)
    assert "part-00001.arrow" in str(fault)


def test_rule_5_finds_a_missing_shard(copy):
    (copy / "part-00000.arrow").unlink()
    (fault,) = require_only(copy, 5)
    assert "part-00000.arrow: expected a shard of" in str(fault)


def test_rule_6_finds_a_shard_of_another_build(copy, tmp_path):
    make_cache(tmp_path / "other", seed=1, pairs=4)
    shutil.copy(tmp_path / "other" / "part-00001.arrow", copy)
    fix_entry(copy, 1)
    (fault,) = require_only(copy, 6)
    assert "part-00001.arrow: expected a shard of build" in str(fault)


def test_rule_6_finds_other_columns_and_what_is_no_arrow_file(copy, tmp_path):
    make_cache(tmp_path / "other", roles=("dpo", "reference"), pairs=4)
    shutil.copy(tmp_path / "other" / "part-00001.arrow", copy)
    (copy / "part-00000.arrow").write_bytes(b"ARROW1\0\0nothing here ARROW1")
    fix_entry(copy, 0)
    fix_entry(copy, 1)
    assert [fault.text.split(": ")[0][-16:] for fault in require_only(copy, 6)] == [
        "part-00000.arrow",
        "part-00001.arrow",
    ]


BATCH_CHANGES = {
    "expected 2 record batches, got 1": lambda batches: batches[:1],
    "expected 2 record batches, got 3": lambda batches: [*batches, batches[0]],
    "record batch 1: expected 2 rows, got 1": lambda batches: [
        batches[0],
        (batches[1][0].slice(0, 1), arrays.batch_metadata(batches[1][0].slice(0, 1), 2)),
    ],
}


@pytest.mark.parametrize("text", BATCH_CHANGES)
def test_rule_7_finds_record_batches_of_other_sizes(copy, text):
    rewrite_shard(copy, BATCH_CHANGES[text])
    (fault,) = require_only(copy, 7)
    assert text in str(fault)


def test_rule_7_finds_a_record_batch_that_is_no_valid_data(copy):
    def change(batches):
        for batch, metadata in batches:
            at = batch.schema.get_field_index(schema.SAMPLE_ID)
            offsets, text = np.array([0, 1, 2], dtype=np.int32), b"\xff\xfe"
            no_text = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(offsets), pa.py_buffer(text)])
            changed = batch.set_column(at, batch.schema.field(at), no_text)
            first_row = int(metadata[schema.FIRST_ROW_KEY])
            yield changed, arrays.batch_metadata(changed, first_row)

    rewrite_shard(copy, change)
    faults = require_only(copy, 7)
    assert len(faults) == 2, "one for each record batch"


def test_rule_8_finds_a_crc32_that_is_wrong_or_missing(copy):
    def change(batches):
        (first, metadata), (second, _) = batches
        sums = json.loads(metadata[schema.CRC32_KEY])
        yield first, {**metadata, schema.CRC32_KEY: json.dumps({**sums, schema.CHOSEN: 1}).encode()}
        yield second, {schema.FIRST_ROW_KEY: b"2"}

    rewrite_shard(copy, change)
    first, second = require_only(copy, 8)
    assert f"record batch 0 column {schema.CHOSEN}: expected crc32 1, got" in str(first)
    assert "record batch 1: expected crc32 metadata, got none" in str(second)


# ---- rules 9 to 19: rows


@pytest.mark.parametrize("name", ROW_FAULTS)
def test_every_rule_about_rows_finds_its_fault_and_names_file_row_and_column(fake, tmp_path, name):
    rule, column, change = ROW_FAULTS[name]
    row = next(i for i, r in enumerate(fake.responses) if i >= 4 and has_a_position_of_every_kind(r))
    rewrite(fake, tmp_path, row, change)
    first, *others = map(str, require_only(tmp_path, rule))
    assert re.match(rf".*/part-00001\.arrow row {row} \('[^']+'\): {column}: expected .*, got ", first)
    assert all(f"part-00001.arrow row {row} (" in other for other in others)


def test_every_rule_is_tested():
    assert {rule for rule, _, _ in ROW_FAULTS.values()} == set(range(9, 20))


def test_rule_9_finds_a_name_that_comes_twice(fake, tmp_path):
    rewrite(fake, tmp_path, 6, lambda r: replace(r, sample_id=fake.responses[2].sample_id, pair_id=1), index=True)
    (fault,) = require_only(tmp_path, 9)
    assert "part-00001.arrow row 6 ('1/chosen'): sample_id: expected a name of its own, got that of row 2" in str(fault)


def test_faults_after_the_first_are_found_too(fake, tmp_path):
    responses = list(fake.responses)
    responses[1] = swap_first_ids(responses[1])
    responses[2] = replace(
        responses[2], chosen=not responses[2].chosen, input_ids=changed(responses[2].input_ids, 0, V)
    )
    responses[7] = drop_last(responses[7], "support_ids")
    write_cache(tmp_path, fake.plan, fake.vocabulary, responses)
    (tmp_path / "part-00002.arrow").touch()
    assert [fault.rule for fault in verify(tmp_path)] == [4, 13, 9, 12, 10]


# ---- rule 20: the whole


def test_rule_20_finds_statistics_that_are_not_those_of_the_values(copy):
    edit_manifest(copy, lambda m: m["statistics"]["l1_distance_reverse"].update(mean=0.5, surplus=1))
    edit_manifest(copy, lambda m: m["statistics"].pop("coverage_dpo"))
    faults = require_only(copy, 20)
    assert len(faults) == 3
    assert "statistics.l1_distance_reverse.mean: expected" in "\n".join(map(str, faults))


def test_rule_20_finds_a_wrong_number_of_kept_tokens(copy):
    set_entry(copy, 1, entries=1)
    (fault,) = require_only(copy, 20)
    assert "part-00001.arrow: entries: expected 1, got" in str(fault)


def test_rule_20_finds_a_wrong_number_of_response_tokens(fake, tmp_path):
    first, second = plan_shards(fake.responses, 4)
    plan = replace(fake.plan, shards=(first, replace(second, positions=second.positions + 1)))
    write_cache(tmp_path, plan, fake.vocabulary, fake.responses)
    (fault,) = require_only(tmp_path, 20)
    assert "part-00001.arrow: positions: expected" in str(fault)
