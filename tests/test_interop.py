"""A shard opens in common tools, and docs/format.md is enough to read it."""

import ast
import json
import re
from pathlib import Path

import datasets
import duckdb
import numpy as np
import polars
import pyarrow as pa
import pytest
from fake_cache import make_cache

from shards import ShardCache, TeacherSpec
from shards.format import schema
from shards.verify.rules import RULES

FORMAT_PAGE = Path(__file__).parents[1] / "docs" / "format.md"


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("interop") / "shards", pairs=4, rows_per_shard=8)


@pytest.fixture(scope="module")
def expected(fake):
    """sample id, kept ids and log-probs of each row: a string, an integer list and a float list."""
    return [(r.sample_id, r.scores.support_ids.tolist(), r.scores.logprobs["dpo"].tolist()) for r in fake.responses]


COLUMNS = (schema.SAMPLE_ID, schema.SUPPORT_IDS, schema.logprobs_column("dpo"))


def test_pyarrow_reads_a_shard_as_a_plain_table(fake, expected):
    table = pa.ipc.open_file(str(fake.folder / "part-00000.arrow")).read_all()
    assert list(zip(*(table[name].to_pylist() for name in COLUMNS), strict=True)) == expected


def test_datasets_reads_a_shard(fake, expected, tmp_path):
    path = str(fake.folder / "part-00000.arrow")
    rows = datasets.load_dataset("arrow", data_files=path, split="train", cache_dir=str(tmp_path))
    assert [tuple(row[name] for name in COLUMNS) for row in rows] == expected


def test_polars_reads_a_shard(fake, expected):
    frame = polars.read_ipc(fake.folder / "part-00000.arrow")
    assert frame.select(COLUMNS).rows() == expected


def test_duckdb_reads_a_shard_through_a_pyarrow_table(fake, expected):
    table = pa.ipc.open_file(str(fake.folder / "part-00000.arrow")).read_all()
    with duckdb.connect() as connection:
        connection.register("shard", table)
        assert connection.sql(f"select {', '.join(COLUMNS)} from shard").fetchall() == expected
        ((positions,),) = connection.sql("select sum(len(support_count)) from shard").fetchall()
    assert positions == fake.plan.positions


@pytest.fixture(scope="module")
def recipes():
    """values -> the code of the format page for them."""
    page = FORMAT_PAGE.read_text(encoding="utf-8")
    reading, compact, teacher = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    return {"float32": reading + teacher, "compact": reading + compact + teacher}


@pytest.fixture(scope="module")
def recipe(recipes):
    return recipes["float32"]


def test_the_recipe_of_the_format_page_needs_none_of_our_code(recipes):
    imports = [
        node for node in ast.walk(ast.parse(recipes["compact"])) if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    modules = {
        name for node in imports for name in (getattr(node, "module", None) or node.names[0].name).split(".")[:1]
    }
    assert modules == {"hashlib", "json", "zlib", "pathlib", "numpy", "pyarrow"}


def test_the_recipe_of_the_format_page_gives_the_values_of_our_reader(recipe, fake, monkeypatch):
    monkeypatch.chdir(fake.folder.parent)
    found = {}
    exec(compile(recipe, str(FORMAT_PAGE), "exec"), found)
    cache = ShardCache(fake.folder)
    assert found["index"] == {name: getattr(cache.index, name).tolist() for name in found["index"]}
    assert list(found["index"]) == ["pair_id", "chosen", "num_tokens", "num_positions"]
    scores, teacher = cache[0].scores, cache.teacher([0], TeacherSpec.preset("aligndistil"))
    np.testing.assert_array_equal(found["count"], scores.support_count)
    np.testing.assert_array_equal(found["ids"], scores.support_ids)
    np.testing.assert_array_equal(found["dpo"], scores.logprobs["dpo"])
    np.testing.assert_array_equal(found["strength"], teacher.strength)
    exact = teacher.tail_bound == 0
    assert 0 < exact.sum() < len(exact), "the row must have strengths at nodes and between them"
    np.testing.assert_allclose(found["teacher_logprobs"], teacher.logprobs, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found["teacher_tail_logprob"], teacher.tail_logprob, rtol=1e-12)


@pytest.mark.parametrize("roles", [schema.ROLES, schema.REQUIRED_ROLES], ids=" ".join)
@pytest.mark.parametrize("top_k", [None, 1, 24])
def test_the_recipe_of_the_format_page_gives_every_value_of_a_compact_cache(
    recipes, roles, top_k, tmp_path, monkeypatch
):
    fake = make_cache(tmp_path / "shards", pairs=1, values="compact", roles=roles, top_k=top_k, response_tokens=30)
    monkeypatch.chdir(tmp_path)
    found, recipe = {}, recipes["compact"] if "reverse" in roles else recipes["compact"].split("count = ")[0]
    exec(compile(recipe, str(FORMAT_PAGE), "exec"), found)
    cache = ShardCache(fake.folder)
    scores, column = cache[0].scores, found["column"]
    np.testing.assert_array_equal(column(schema.SUPPORT_IDS), scores.support_ids)
    for field, name in (
        ("logprobs", schema.logprobs_column),
        ("next_logprob", schema.next_logprob_column),
        ("tail_logprob", schema.tail_logprob_column),
        ("l1_distance", schema.l1_distance_column),
        ("tail_logpartition", schema.tail_logpartition_column),
    ):
        for key, values in getattr(scores, field).items():
            np.testing.assert_allclose(column(name(key)), values.ravel(), rtol=1e-6, atol=1e-6, err_msg=name(key))
    if "reverse" in roles:
        teacher = cache.teacher([0], TeacherSpec.preset("aligndistil"))
        np.testing.assert_allclose(found["teacher_logprobs"], teacher.logprobs, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found["teacher_tail_logprob"], teacher.tail_logprob, rtol=1e-5, atol=1e-5)


def test_the_recipe_of_the_format_page_refuses_altered_values(recipe, tmp_path, monkeypatch):
    fake = make_cache(tmp_path / "shards", pairs=1)
    path = fake.folder / "part-00000.arrow"
    content = pa.ipc.open_file(str(path))
    found = content.get_batch_with_custom_metadata(0)
    sums = json.dumps({**json.loads(found.custom_metadata[b"crc32"]), "support_ids": 1})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, content.schema) as writer:
        writer.write_batch(found.batch, custom_metadata={"crc32": sums})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match="support_ids"):
        exec(compile(recipe, str(FORMAT_PAGE), "exec"), {})


def test_the_recipe_of_the_format_page_refuses_an_altered_index(recipe, tmp_path, monkeypatch):
    fake = make_cache(tmp_path / "shards", pairs=1)
    (fake.folder / "index.arrow").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError):
        exec(compile(recipe, str(FORMAT_PAGE), "exec"), {})


def test_the_format_page_names_every_column_with_level_and_type(fake):
    rows = re.findall(r"^\| `([^`]+)` +\| (\w+) +\| (\w+) +\|", FORMAT_PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    pairs = [str(pair).replace("/", "_") for pair in fake.plan.pairs]
    stated = []
    for name, level, kind in rows:
        for filled in dict.fromkeys(
            name.replace("<a>_<n>", pair).replace("<r>", role).replace("<n>", negative)
            for pair in pairs
            for role in schema.ROLES
            for negative in schema.NEGATIVES
        ):
            stated.append((filled, level, kind.replace("float32", "float")))
    assert stated == [(column.name, column.level, str(column.value_type)) for column in fake.plan.columns()]


def test_the_format_page_has_the_rules_that_verify_checks():
    rules = re.findall(r"^(\d+)\. \*\*([^*]+)\*\*", FORMAT_PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {int(number): name for number, name in rules} == RULES


def test_the_format_page_names_every_key_of_the_manifest(fake):
    manifest = json.loads((fake.folder / "manifest.json").read_text())
    table = FORMAT_PAGE.read_text(encoding="utf-8").split("## Manifest")[1].split("## Shards")[0]
    for key in [*manifest, *manifest["shards"][0]]:
        assert f"`{key}`" in table
