"""The campaign `kills` in small: kills at steps of a copy, a rollout and a build, and planted defects that it finds."""

import posix
import random

import pytest
from stress.kills.campaign import Kills, in_order, killed
from stress.kills.defects import DEFECTS
from stress.kills.jobs import AtTime
from stress.kills.syscalls import tracer
from stress.kills.syscalls.calls import Call
from stress.kills.syscalls.order import Disk
from stress.kills.syscalls.steps import kind_of, moments_of_calls, namer, points


class Small(Kills):
    """Without the trainings, which take seconds."""

    names = ("copy", "rollout")


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    return Small(tmp_path_factory.mktemp("kills"), 0)


def first(campaign, name, beginning, moment):
    """The number of the first case at such a step."""
    return next(
        number
        for number, (job, point) in enumerate(campaign.cases)
        if job == name and isinstance(point, tracer.Point) and (point.step or "").startswith(beginning)
        and point.moment == moment
    )  # fmt: skip


def assert_held(outcome):
    assert outcome.verdict == "held", f"{outcome.kind}: {outcome.text}"


def test_a_copy_and_a_rollout_that_are_killed_end_as_if_nothing_had_happened(campaign):
    numbers = [number for number, (_, point) in enumerate(campaign.cases) if isinstance(point, tracer.Point)]
    for number in numbers[::12]:
        assert_held(campaign.case(number))


def test_a_build_that_is_killed_while_a_shard_is_half_written_goes_on_from_the_one_before(campaign):
    point = tracer.Point("write cache/.part-00001.arrow.tmp", 7, "half")
    assert_held(killed(campaign.job("build"), [point]))


def test_a_kill_at_a_random_time_is_one_of_a_process_group(campaign):
    assert_held(killed(campaign.job("copy"), [AtTime(0.5)]))


@pytest.mark.parametrize("name", Small.names)
def test_names_are_given_to_what_is_on_the_disk_and_nothing_goes_before(campaign, name):
    assert_held(in_order(campaign.job(name)))


@pytest.mark.parametrize(
    ("defect", "name", "step", "moment"),
    [
        ("no file is flushed before it gets its name", "rollout", None, None),
        ("a copy's manifest comes before its shards", "copy", "link copy/.part-", "after"),
    ],
)
def test_a_planted_defect_is_found(campaign, defect, name, step, moment):
    number = campaign.cases.index((name, None)) if step is None else first(campaign, name, step, moment)
    with DEFECTS[defect]():
        assert campaign.case(number).verdict == "missed"
    assert_held(campaign.case(number))


# ---- its parts


def write(folder):
    """What a writer does, in three steps."""
    with (folder / ".a.vm-7.aligndistil-tmp").open("wb", buffering=0) as file:
        file.write(b"0123456789")
        posix.fsync(file.fileno())
    (folder / ".a.vm-7.aligndistil-tmp").rename(folder / "a")


STEPS = ["open .a.tmp", "write .a.tmp", "fsync .a.tmp", "rename .a.tmp a"]


def test_the_calls_of_a_run_are_recorded_by_names_that_are_the_same_in_every_run(tmp_path):
    found = tracer.traced(lambda: write(tmp_path), tmp_path / "log", namer(tmp_path), None, 30)
    assert found.ended.code == 0
    assert [namer(tmp_path)(call) for call in found.calls] == STEPS


@pytest.mark.parametrize(
    ("step", "moment", "left"),
    [
        ("open .a.tmp", "before", {}),
        ("open .a.tmp", "after", {".a.vm-7.aligndistil-tmp": b""}),
        ("write .a.tmp", "half", {".a.vm-7.aligndistil-tmp": b"01234"}),
        ("write .a.tmp", "after", {".a.vm-7.aligndistil-tmp": b"0123456789"}),
        ("rename .a.tmp a", "before", {".a.vm-7.aligndistil-tmp": b"0123456789"}),
        ("rename .a.tmp a", "after", {"a": b"0123456789"}),
    ],
)
def test_a_run_is_killed_exactly_at_a_step(tmp_path, step, moment, left):
    (tmp_path / "out").mkdir()
    out = tmp_path / "out"
    point = tracer.Point(step, 1, moment)
    assert tracer.traced(lambda: write(out), tmp_path / "log", namer(out), point, 30).ended.code == -9
    assert {path.name: path.read_bytes() for path in out.iterdir()} == left


def test_steps_of_one_kind_get_one_point_for_every_moment():
    steps = [f"{call} cache/part-0000{number}.arrow" for number in range(3) for call in ("write", "fsync")]
    found = points(steps, moments_of_calls, random.Random(0))
    assert sorted((kind_of(point.step), point.moment) for point in found) == [
        *(("fsync cache/part-N.arrow", moment) for moment in ("after", "before")),
        *(("write cache/part-N.arrow", moment) for moment in ("after", "before", "half")),
    ]


def faults(*calls):
    return list(Disk("/case/out", {"manifest.json"}).faults([Call(name, paths) for name, *paths in calls]))


TMP, NAME = "/case/out/.a.tmp", "/case/out/a"
WHOLE = [("open", TMP), ("write", TMP), ("fsync", TMP), ("rename", TMP, NAME), ("fsync", "/case/out")]


@pytest.mark.parametrize(
    ("left_out", "fault"),
    [(2, "out/a given its name before out/.a.tmp was flushed"), (4, "at the end, names of out not flushed")],
)
def test_the_law_of_order_sees_each_flush_that_is_left_out(left_out, fault):
    assert faults(*WHOLE) == []
    assert fault in faults(*WHOLE[:left_out], *WHOLE[left_out + 1 :])


def test_the_law_of_order_sees_a_marker_before_its_files_and_a_removal_before_a_name():
    marked = faults(("write", "/case/out/b"), ("rename", "/case/out/.m.tmp", "/case/out/manifest.json"))
    assert "out/manifest.json given its name before out/b was flushed" in marked
    removed = faults(*WHOLE[:4], ("unlink", "/case/out/old"), WHOLE[4])
    assert removed == ["out/old removed before the names in out were flushed"]


def test_a_file_that_is_written_in_place_is_not_on_the_disk():
    written = [("open", NAME), ("write", NAME), ("fsync", "/case/out")]
    assert faults(*written) == ["at the end, content of out/a not flushed"]
