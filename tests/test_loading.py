"""The loading benchmark runs, and it makes a valid cache."""

import json

import pytest

from benchmarks.loading import scale
from benchmarks.loading.__main__ import main
from benchmarks.loading.many import repeated_responses, write_indexed, write_shards_of
from benchmarks.loading.opening import opened
from benchmarks.loading.options import LoadingOptions
from benchmarks.loading.synthetic import make_responses, write_cache
from shards import ShardCache
from shards.errors import OptionError
from shards.verify.__main__ import verify

TOY = {"rows": 12, "length": 8, "prompt": 3, "top_k": 6, "max_top_k": 20, "vocabulary": 40, "rows_per_batch": [1, 4]}


@pytest.mark.parametrize("values", ["compact", "float32"])
@pytest.mark.parametrize("roles", [["dpo", "reverse", "reference"], ["dpo", "reference"]])
@pytest.mark.parametrize("top_k", [6, 40])
def test_a_synthetic_cache_holds_every_rule(tmp_path, values, roles, top_k):
    teacher = "aligndistil" if "reverse" in roles else "adaptive"
    sizes = TOY | {"top_k": top_k, "max_top_k": max(20, top_k)}
    options = LoadingOptions(**sizes, values=values, roles=roles, teacher=teacher)
    write_cache(tmp_path, options, list(make_responses(options)), 2)
    assert list(verify(tmp_path)) == []


def test_every_number_of_the_page_is_there(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scale, "_opened", lambda folder: opened(str(folder)))  # not in a process of its own
    flags = [f"--{name}={value}" for name, value in TOY.items() if name != "rows_per_batch"]
    flags += ["--rows_per_batch", "1", "4", "--micro_batch_size", "2", "--global_batch_size", "4", "--repeats", "1"]
    flags += ["--shards", "2", "6", "--shard_rows", "6", "--index_rows", "100", "1000"]
    main([*flags, "--levels", "1", "3", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["facts"]["rows"] == 12
    assert results["caches"]["1"]["amplification"] == 1 < results["caches"]["4"]["amplification"] <= 4
    for group in ("whole", "parts", "floors", "packings"):
        assert all(rate["positions_per_second"] > 0 for rate in results[group].values())
    text = (tmp_path / "loading.md").read_text()
    assert all(f"`{name}`" in text for name in results["columns"]) and text.count("| zstd ") == 2
    found = results["scale"]
    assert list(found["reading"]) == list(found["checking"]) == ["2", "6"]
    assert {rows: opening["shards"] for rows, opening in found["opening"].items()} == {"100": 1, "1000": 5}
    tables = text.split("## Many shards, many rows")[1].strip()
    assert tables in capsys.readouterr().out
    assert tables.count("\n| ") == 2 + 2 + 2 + 3 and tables.count("asked for") == 3
    assert not (tmp_path / "scale").exists()


def test_what_is_opened_and_read_of_many_shards_is_a_cache(tmp_path):
    options = LoadingOptions(**TOY, shards=[5], shard_rows=12)
    write_shards_of(tmp_path / "whole", options, repeated_responses(options, 12), 5)
    assert list(verify(tmp_path / "whole")) == []
    assert [shard.rows for shard in ShardCache(tmp_path / "whole").plan.shards] == [2, 3, 2, 3, 2]
    write_indexed(tmp_path / "index", options, 500)
    cache = ShardCache(tmp_path / "index")
    assert (len(cache), len(cache.index.pair_id), cache.index.pair_id[-1]) == (500, 500, 249)
    assert cache.plan.positions == cache.index.num_positions.sum()


@pytest.mark.parametrize(
    "flags",
    [
        {"rows": 0},
        {"top_k": 600},
        {"levels": []},
        {"micro_batch_size": 3},
        {"roles": ["dpo"]},
        {"roles": ["dpo", "reference"]},
        {"teacher": "theorem1"},
        {"values": "int8"},
        {"measure": ["all"]},
        {"index_rows": []},
        {"shards": [9], "shard_rows": 5},
    ],
)
def test_flags_that_cannot_be_are_refused(flags):
    with pytest.raises(OptionError):
        LoadingOptions(**flags)
