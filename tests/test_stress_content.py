"""The campaign `content` in small: every fault once, and every defect planted in a check is found."""

import pytest
from stress.content import Content


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    return Content(tmp_path_factory.mktemp("content"), 0)


def number_of(campaign, fault, values, actor):
    return campaign.kinds.index((fault, values, actor))


@pytest.mark.parametrize("actor", ["reader", "loader", "writer"])
def test_faults_anywhere_in_a_row_are_refused(campaign, actor):
    """verify: tests/test_verify.py."""
    for number in [i for i, kind in enumerate(campaign.kinds) if kind[2] == actor][::3]:
        assert campaign.case(number).verdict == "held", campaign.case(number).text


CAUGHT = {
    "no check of lengths, counts and D_t": ("D_t", "float32", "loader"),
    "no check of token ids": ("token id", "compact", "loader"),
    "no check of masks and starts": ("mask at token 0", "float32", "loader"),
    "no check of names": ("name", "compact", "reader"),
    "no check of the order of ids": ("kept ids not ascending", "compact", "loader"),
    "no check of log-probs": ("log-prob over 0", "compact", "loader"),
    "no check of tails": ("no tail", "compact", "reader"),
    "no check of the mass": ("mass over 1", "compact", "loader"),
    "a writer without checks": ("mass under 1", "float32", "writer"),
    "rule 9 left out": ("name", "float32", "writer"),
    "rule 10 left out": ("length of support_ids", "float32", "writer"),
    "rule 11 left out": ("mask at token 0", "float32", "writer"),
    "rule 12 left out": ("token id", "float32", "writer"),
    "rule 13 left out": ("kept ids not ascending", "float32", "writer"),
    "rule 14 left out": ("log-prob not finite", "float32", "writer"),
    "rule 15 left out": ("tail over 0", "float32", "writer"),
    "rule 16 left out": ("mass over 1", "float32", "writer"),
    "rule 18 left out": ("D_t", "float32", "reader"),
}


@pytest.mark.parametrize("defect", Content.defects)
def test_a_check_that_is_left_out_is_found(campaign, defect):
    kind = number_of(campaign, *CAUGHT[defect])
    numbers = [kind + i * len(campaign.kinds) for i in range(6)]
    assert all(campaign.case(number).verdict == "held" for number in numbers[:1])
    with campaign.defects[defect]():
        assert any(campaign.case(number).verdict == "missed" for number in numbers)
