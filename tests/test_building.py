"""The build's benchmark runs, and its parts do what a build does."""

import json

import pytest
import torch

from benchmarks.building.__main__ import main
from benchmarks.building.bench import Works, make_bench
from benchmarks.building.options import BuildingOptions
from benchmarks.building.report import parts, section, verdict, whole
from shards.errors import OptionError

TOY = {
    "hidden_size": 16, "layers": 2, "heads": 2, "vocabulary": 60, "pairs": 2, "sequence_length": 14,
    "prompt_tokens": 5, "top_k": 8, "repeats": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def works(tmp_path_factory):
    return Works(make_bench(BuildingOptions(**TOY, out=str(tmp_path_factory.mktemp("building")))))


def test_the_parts_give_what_the_build_stores(works):
    assert sum(len(kept) for kept in works.kept) == works.bench.plan.positions
    count = torch.cat([kept.sum(-1) for kept in works.kept])
    stored = torch.cat([torch.from_numpy(r.scores.support_count) for r in works.responses])
    torch.testing.assert_close(count.int(), stored.int())
    works.write()
    works.check()


def test_every_number_of_the_page_is_there(tmp_path):
    flags = [word for name, value in TOY.items() for word in (f"--{name}", str(value))]
    main([*flags, "--out", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text())
    assert all(seconds > 0 for seconds in results["seconds"].values()) and results["bytes"] > 0
    text = (tmp_path / "building.md").read_text()
    assert text == section(results) and all(name in text for name in parts(results["seconds"]))


def test_the_goal_is_reached_or_said_to_be_missed():
    seconds = {"score": 1.2, "shared_score": 1.1, "write": 0.02, "check": 0.01, "floor": 1.0}
    assert whole(seconds) == pytest.approx(1.23)
    assert "reached" in verdict(seconds, "cpu")[0] and "missed" in verdict(seconds, "cuda")[0]


@pytest.mark.parametrize("flags", [{"pairs": 0}, {"repeats": 0}, {"growth": [0.0]}, {"heads": 3}, {"dtype": "int8"}])
def test_flags_that_cannot_be_are_refused(flags):
    with pytest.raises(OptionError):
        BuildingOptions(**flags)
