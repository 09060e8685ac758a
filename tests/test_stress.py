"""The campaigns of `make stress` in small: their machinery here, each campaign in a test file of its own."""

import contextlib
from typing import ClassVar

import pytest
from stress import __main__ as command
from stress.campaign import Campaign, held, missed
from stress.slices import read_state, run_slice, spread


class Numbers(Campaign):
    """Holds but for number 7, or for every third one with the defect."""

    name, unit = "numbers", "cases"
    bad = frozenset({7})

    def __init__(self, ground, seed):
        self.seed = seed

    def __len__(self):
        return 30

    def case(self, number):
        return missed("odd", f"expected less, got {number}") if number in self.bad else held("plain")

    @contextlib.contextmanager
    @staticmethod
    def thirds():
        Numbers.bad = frozenset(range(0, 30, 3))
        yield
        Numbers.bad = frozenset({7})

    defects: ClassVar = {"every third": thirds, "nothing": contextlib.nullcontext}


@pytest.fixture
def numbers(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "CAMPAIGNS", {"numbers": "test_stress:Numbers"})
    return lambda *flags: command.main(["numbers", "--state", str(tmp_path), *flags])


@pytest.mark.parametrize("cases", [1, 2, 3, 30, 1000])
def test_slices_together_are_every_case_once(cases):
    assert sorted([*spread(cases, 5)]) == [*range(cases)]
    assert [*spread(cases, 5)][1:] == [*spread(cases, 5, 1)]


def test_a_campaign_goes_on_where_the_last_slice_stopped_and_counts_all(numbers, tmp_path, capsys):
    while "30 of 30 cases" not in (printed := capsys.readouterr().out):
        numbers("--seconds", "0.00001")
    assert "29 held, 1 missed, 0 hung" in printed and "--case 7: missed: odd: expected less, got 7" in printed
    assert numbers() == 1  # all done, and the miss is not forgotten


def test_a_case_can_be_run_alone(numbers, capsys):
    numbers("--case", "7")
    assert "missed" in capsys.readouterr().out


def test_a_planted_defect_that_is_not_found_is_a_failure(numbers, capsys):
    assert numbers("--planted") == 1
    assert capsys.readouterr().out.splitlines() == [
        "numbers: every third: found after 1 cases",
        "numbers: nothing: NOT found",  # 7 fails without a defect too
    ]


def test_the_table_has_what_was_counted(numbers, capsys):
    numbers(), numbers("--planted"), capsys.readouterr()
    assert numbers("--table") == 0
    rows = capsys.readouterr().out.splitlines()
    assert "| numbers | 30 cases | 30 | 29 | 1 | 0 | 0 |" in rows
    assert "| numbers | every third | 1 cases |" in rows and "| numbers | nothing | never |" in rows


def test_counts_of_another_seed_are_not_gone_on_with(numbers, tmp_path):
    numbers()
    with pytest.raises(ValueError, match="expected seed 1 and 30 cases, got 0 and 30"):
        numbers("--seed", "1")


def test_a_failure_is_never_counted_as_held(tmp_path):
    campaign = Numbers(tmp_path, 0)
    state = read_state(tmp_path / "numbers.json", "numbers", 0, 30)
    run_slice(campaign, state, 60, lambda state: None)
    assert (state.total("held"), state.total("missed"), state.failures[0][0]) == (29, 1, 7)
