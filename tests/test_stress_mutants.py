"""The campaign of hostile files in small, and that it can fail."""

import pytest
from stress.mutants.campaign import Mutants
from stress.mutants.defects import DEFECTS

MUTATED = (
    "manifest compact",
    "shard compact 0",
    "shard float32 1",
    "weights index",
    "log",
    "pipeline",
    ".jsonl",
    ".arrow",
)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    made = Mutants(tmp_path_factory.mktemp("mutants"), 0)
    made.batch = 30
    return made


def of_target(campaign, name):
    return campaign.mutants(next(i for i, target in enumerate(campaign.schedule) if target.name == name))


def row(campaign, name):
    return campaign.row(next(i for i, (found, *_) in enumerate(campaign.table) if found.startswith(name)))


@pytest.mark.parametrize("name", MUTATED)
def test_a_mutant_gives_one_line_or_sound_values(campaign, name):
    assert (found := of_target(campaign, name)).verdict == "held", found


@pytest.mark.parametrize("name", ["manifest compact: a shard", ".arrow: a buffer", "shard compact 0: a pipe"])
def test_a_hostile_file_gives_one_line(campaign, name):
    assert (found := row(campaign, name)).verdict == "held", found


@pytest.mark.parametrize(
    ("defect", "name"),
    [
        ("names of shards not checked", "plan compact: a shard '/etc"),
        ("no limit before allocation", ".arrow: a buf"),
    ],
)
def test_the_campaign_finds_a_check_that_is_left_out(campaign, defect, name):
    with DEFECTS[defect]():
        assert row(campaign, name).verdict == "missed"


def test_a_mutant_can_be_made_again_alone(campaign):
    target = campaign.targets["log"]
    assert campaign.content(target, 3, 5) == campaign.content(target, 3, 5) != campaign.content(target, 3, 6)
