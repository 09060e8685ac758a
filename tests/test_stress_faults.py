"""The campaign of faults in small: two commands that write, some of their calls, and defects that it must find."""

import shutil

import pytest
from fake_run import make_run
from stress.faults import defects
from stress.faults.campaign import Faults
from stress.faults.runs import NotHere


@pytest.fixture(scope="module")
def faults(sparse_cache, tmp_path_factory):
    def make(places):
        shutil.copytree(sparse_cache.folder, places.inputs / "cache")
        make_run(places.inputs / "run", steps=5)

    try:
        return Faults(tmp_path_factory.mktemp("faults"), 0, ["copy", "report"], make)
    except NotHere as exc:
        pytest.skip(str(exc))


def chosen(faults):
    """The numbers of some cases: of each kind of fault the one in the middle."""
    groups = {}
    for number, case in enumerate(faults.cases):
        if getattr(case, "mode", "") != "disk":  # which only root can make
            groups.setdefault((case.command, case.mode, getattr(case, "kind", "")), []).append(number)
    return [numbers[len(numbers) // 2] for numbers in groups.values()]


def test_a_fault_is_one_line_leaves_nothing_half_and_the_next_run_is_whole(faults):
    found = {faults.cases[number]: faults.case(number) for number in chosen(faults)}
    assert not [outcome for outcome in found.values() if outcome.verdict != "held"]
    assert {case.mode for case in found} == {"once", "ever", "gone", "stopped", "files", "bytes", "memory"}


@pytest.mark.parametrize("defect", ["a failed write published", "written in place"])
def test_a_planted_defect_is_found(faults, defect):
    sizes = {case.size: i for i, case in enumerate(faults.cases) if (case.command, case.mode) == ("report", "bytes")}
    almost = sizes[sorted(sizes)[-2]]  # the largest is the size of the page
    assert faults.case(almost).verdict == "held"
    with defects.DEFECTS[defect]():
        assert faults.case(almost).verdict == "missed"
