"""The scaling benchmark: its paper table follows from the assumptions, and what it measures is measured."""

import json

import numpy as np
import pytest

from benchmarks.scaling import growth, paper
from benchmarks.scaling.__main__ import main
from benchmarks.scaling.options import ScalingOptions
from benchmarks.scaling.shuffling import blocks, quality
from shards.errors import OptionError


def test_the_paper_table_follows_from_its_assumptions():
    base = ScalingOptions()
    assert paper.num_shards(base) == 152_588
    hours = 2 * 70e9 * 10e6 * 1200 * 3 / (989e12 * 0.4) / 3600
    assert paper.build_hours(base) == pytest.approx(hours)
    assert paper.shard_seconds(base) * 152_588 * 8 / 3600 == pytest.approx(hours)
    assert paper.build_hours(ScalingOptions(mfu=0.2)) == pytest.approx(2 * hours)
    for count, text in ((999, "999 B"), (4.7e12, "4.7 TB"), (30.8e6, "30.8 MB")):
        assert paper.size(count) == text


def test_the_measures_of_a_shuffle_know_a_permutation_and_no_shuffle():
    ends = np.arange(50, 50 * 41, 50)
    random = quality(np.random.default_rng(0).permutation(2000), ends, 20)
    assert random["spread"] == pytest.approx(12**-0.5, rel=0.05) and abs(random["correlation"]) < 0.05
    none = quality(np.arange(2000), ends, 20)
    assert (none["at_once"], none["arriving"]) == (2, 1) and none["spread"] < 0.01
    assert sorted(blocks(ends, 7, 0).tolist()) == list(range(2000))


def test_all_that_is_asked_for_is_written(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    opened = {
        "shards": 1,
        "manifest.json_bytes": 1,
        "cpu_seconds": 0.1,
        "seconds": 0.1,
        "bytes_per_row": 1.0,
        "peak_bytes_per_row": 2.0,
    }
    monkeypatch.setattr(growth, "_opening", lambda *args: opened)
    monkeypatch.setattr(growth, "MILLION", 5000)
    sizes = [
        "--windows",
        "2",
        "--shuffled_shards",
        "6",
        "--rows",
        "500",
        "5000",
        "--shards",
        "3",
        "40",
        "--ranks",
        "1",
        "4",
    ]
    asked = ["--measure", "paper", "shuffle", "growth", "reading", "--read_rows", "40", "--repeats", "1"]
    main([*asked, *sizes, "--out", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text())
    assert [line["way"] for line in results["shuffle"]] == ["window", "blocks", "window"]
    assert {axis: len(points) for axis, points in results["growth"].items()} == {"rows": 2, "shards": 2, "ranks": 2}
    assert list(results["reading"]) == ["3", "40"]
    assert (tmp_path / "scaling.md").read_text() == capsys.readouterr().out
    assert (tmp_path / "growth.svg").exists()


@pytest.mark.parametrize(
    "flags", [{"measure": ["all"]}, {"axes": []}, {"mfu": 0}, {"gpus": 0}, {"rows": [0]}, {"read_rows": 5}]
)
def test_flags_that_cannot_be_are_refused(flags):
    with pytest.raises(OptionError):
        ScalingOptions(**flags)
