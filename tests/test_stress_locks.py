"""The campaign `locks` in small: rounds of the bare lock, and that planted defects are found."""

from itertools import islice

import pytest
from stress.locks.campaign import BARE_ROUNDS, Locks
from stress.slices import spread

ROUNDS = 6


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    return Locks(tmp_path_factory.mktemp("locks"), seed=0)


def test_rounds_of_the_lock_hold(campaign):
    found = [campaign.case(number) for number in islice(spread(BARE_ROUNDS, 0), ROUNDS)]
    assert [outcome for outcome in found if outcome.verdict != "held"] == []


@pytest.mark.parametrize("defect", ["no lock is taken", "the file of a dead owner stops the next one"])
def test_a_planted_defect_is_found(campaign, defect):
    with campaign.defects[defect]():
        assert any(campaign.case(number).verdict == "missed" for number in range(30))


def test_two_commands_on_one_folder_leave_what_one_alone_does(campaign):
    assert campaign.case(BARE_ROUNDS + 2).verdict == "held"  # rollouts, the cheapest
