"""Tasks on the workers of a cluster: each is done once, lost workers cost what they had in work, errors are one line.

Ray is a stand-in in this process here; test_ray.py has the real one.
"""

from types import SimpleNamespace

import pytest
from stand_in_ray import RayActorError, RayTaskError, StandInRay

from precompute.cluster import crew as crew_module
from precompute.cluster.answers import Refusal
from precompute.cluster.crew import Crew, WorkersLost
from precompute.cluster.members import Stage, Task
from precompute.cluster.sizes import Sizes
from shards.errors import CacheConflict, DataError, NonFiniteLogits, OptionError

NAN = Refusal(kind="NonFiniteLogits", message="dpo: expected finite logits, got nan for sample 3/chosen")


class Worker:
    """Says what it was given. fails: task, or a stage, or (stage, worker) -> what the workers do, call after call."""

    def __init__(self, number):
        self.number = number

    def look(self):
        return self._next("look", f"machine-{self.number}")

    def prepare(self):
        return "ready"

    def identify(self):
        return "identity"

    def load(self, options, inputs, table, probing):
        found = self._next("load", "precision" if probing else None)
        self.loads.append((self.number, probing))
        return found

    def fitting_batch_tokens(self):
        return 300 - 100 * self.number

    def do(self, task):
        self.calls.append((self.number, task))
        return self._next(task, task * 10)

    def _next(self, what, otherwise):
        answers = self.fails.get(what) or self.fails.get((what, self.number))
        found = answers.pop(0) if answers else otherwise
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def lines():
    return []


@pytest.fixture
def crew_of(lines):
    def make(fails=None, machines=2, max_retries=2, looked=lambda member, found: None, started=True):
        ray = StandInRay(machines)
        kind = type("Kind", (Worker,), {"fails": dict(fails or {}), "calls": [], "loads": []})
        crew = Crew(kind, Sizes(ray=ray, workers=None, gpus=0), max_retries=max_retries, say=lines.append)

        def take(member, found):
            member.machine = found
            return looked(member, found)

        crew.started = started
        crew.open(Stage("look", lambda member: (), take, repeated=True))
        return crew, kind, ray

    return make


def run(crew, count=6):
    done = {}
    crew.run([Task(name=f"shard {i}", method="do", arguments=(i,)) for i in range(count)], _take(done))
    return done


def _take(done):
    def take(member, task, found):
        assert task.name not in done, "a task is done once"
        done[task.name] = found

    return take


ALL = {f"shard {i}": 10 * i for i in range(6)}


def test_every_task_is_done_once_and_has_its_name_in_the_dashboard(crew_of, lines):
    crew, kind, ray = crew_of()
    asked = ray.asked
    assert run(crew) == ALL and sorted(task for _, task in kind.calls) == list(range(6))
    assert {number for number, _ in kind.calls} == {0, 1} and set(ALL) < set(ray.names) and lines == []
    assert ray.asked == asked, "the cluster is not asked at every step whether it has grown"


def test_a_lost_worker_costs_the_task_in_work_and_passes_its_stages_again(crew_of, lines):
    crew, kind, ray = crew_of({2: [RayActorError()]})
    assert run(crew) == ALL
    assert sorted(task for _, task in kind.calls) == [0, 1, 2, 2, 3, 4, 5]
    assert ray.names.count("look") == 3 and len(lines) == 1
    assert "was lost in shard 2, which is begun again (1 of 2 retries): its process" in lines[0]
    assert sorted(member.retries for member in crew.members) == [0, 1]
    crew, kind, _ = crew_of({2: [RayActorError()]}, machines=1)
    assert run(crew) == ALL and [task for _, task in kind.calls] == [0, 1, 2, 2, 3, 4, 5]


def test_a_task_is_begun_again_a_bounded_number_of_times(crew_of, lines):
    crew, kind, _ = crew_of({2: [RayActorError()] * 9})
    with pytest.raises(WorkersLost, match=r"^shard 2: begun 3 times, and each time .*; Ray's logs are in session/logs"):
        run(crew)
    assert [task for _, task in kind.calls].count(2) == 3 and len(lines) == 2


def test_an_error_of_our_own_code_restarts_the_worker_and_is_raised_in_the_end(crew_of, lines):
    crew, _, ray = crew_of({2: [RayTaskError(ValueError("a bug"))]})
    assert run(crew) == ALL and [no_restart for _, no_restart in ray.killed] == [False]
    assert lines[0].endswith("(1 of 2 retries): ValueError: a bug")
    lines.clear()
    crew, _, _ = crew_of({2: [RayTaskError(ValueError("a stack\n  of Ray's\na bug" + "!" * 999))]})
    assert run(crew) == ALL and lines[0].endswith("(1 of 2 retries): ValueError: a bug" + "!" * 195)
    crew, _, _ = crew_of({2: [RayTaskError(ValueError("a bug"))] * 9})
    with pytest.raises(RayTaskError):
        run(crew)


def test_what_every_worker_refuses_ends_the_build_with_its_line(crew_of, lines):
    crew, kind, _ = crew_of({2: [NAN, NAN]})
    with pytest.raises(NonFiniteLogits, match=r"^dpo: expected finite logits, got nan for sample 3/chosen$"):
        run(crew)
    assert len({number for number, task in kind.calls if task == 2}) == 2
    crew, _, _ = crew_of({2: [NAN]}, machines=1)
    with pytest.raises(NonFiniteLogits):
        run(crew)


def test_what_one_worker_refuses_another_one_does(crew_of, lines):
    crew, kind, _ = crew_of({2: [NAN]})
    assert run(crew) == ALL
    assert len({number for number, task in kind.calls if task == 2}) == 2
    assert len(lines) == 1 and "shard 2 is tried on another worker" in lines[0]


def test_a_task_is_refused_by_a_bounded_number_of_workers_and_the_first_line_is_told(crew_of):
    refusals = [Refusal(kind="DataError", message=f"row {number}") for number in range(9)]
    crew, kind, _ = crew_of({2: refusals}, machines=5, max_retries=1)
    with pytest.raises(DataError, match=r"^row 0$"):
        run(crew)
    assert [task for _, task in kind.calls].count(2) == 2


def test_a_refused_task_does_not_wait_for_a_worker_that_may_never_start(crew_of):
    crew, _, ray = crew_of({2: [NAN]})
    ray.silent.add(("look", 1))
    with pytest.raises(NonFiniteLogits):
        run(crew)


@pytest.mark.parametrize("started", [False, True])
def test_a_worker_that_is_lost_before_its_work_starts_again(crew_of, lines, started):
    crew, _, ray = crew_of({"look": [RayActorError()] * 2}, machines=1, started=started)
    assert run(crew) == ALL and len(lines) == 2
    assert set(lines) == {
        "worker 0 was lost before its work, at look, and starts again: its process 0 or its machine ended"
    }
    assert (ray.repeats["look"], ray.repeats["shard 0"]) == (2, 0), "Ray itself repeats the first stage alone"


def test_a_worker_that_is_lost_too_often_before_its_work_is_left_out_or_ends_the_build(crew_of, lines):
    line = "worker 1: lost 3 times before its work, at look; Ray's logs are in session/logs"
    crew, kind, _ = crew_of({("look", 1): [RayActorError()] * 9})
    assert run(crew) == ALL and {number for number, _ in kind.calls} == {0}
    assert lines[-1].startswith(line.replace(":", " is left out:"))
    crew, _, _ = crew_of({("look", 1): [RayActorError()] * 9}, started=False)
    with pytest.raises(OptionError, match=f"^{line}"):
        run(crew, 0), crew.until(lambda: False)
    crew, _, _ = crew_of({("look", 1): [RayTaskError(ValueError("a bug"))] * 9}, started=False)
    with pytest.raises(RayTaskError):
        run(crew, 0), crew.until(lambda: False)


def test_work_that_is_done_makes_up_for_lost_starts(crew_of):
    lost = [RayActorError()] * 2
    crew, _, _ = crew_of({"look": [*lost, "here", *lost], 2: [RayActorError()]}, machines=1)
    assert run(crew) == ALL


def test_stages_come_in_order_and_one_that_is_closed_is_over_for_workers_that_come_later(crew_of, monkeypatch):
    monkeypatch.setattr(crew_module, "SECONDS_BETWEEN_LOOKS", 0)
    crew, kind, ray = crew_of(machines=1)
    stage = Stage("prepare", lambda member: (), lambda member, found: None)
    crew.open(stage)
    assert crew.passed(stage) == []
    crew.until(lambda: bool(crew.passed(stage)))
    crew.close(stage)
    ray.machines = 2
    assert run(crew) == ALL and {number for number, _ in kind.calls} == {0, 1}
    assert ray.names[:2] == ["look", "prepare"] and ray.names.count("prepare") == 1
    assert crew.ask(Task(name="one more", method="do", arguments=(7,))) == 70
    workers = [member.actor for member in crew.members]
    crew.end()
    assert [actor for actor, _ in ray.killed] == workers and crew.members == []


def test_what_a_stage_refuses_is_told_with_its_worker(crew_of):
    crew, _, _ = crew_of({("look", 1): [NAN]}, started=False)
    with pytest.raises(NonFiniteLogits, match=r"^worker 1: dpo: expected finite logits"):
        run(crew)


def test_a_worker_for_which_a_stage_cannot_be_prepared_is_left_out(crew_of, lines):
    crew, kind, _ = crew_of()
    crew.open(Stage("prepare", lambda member: NAN if member.number else (), lambda member, found: None))
    assert run(crew) == ALL and {number for number, _ in kind.calls} == {0}
    assert lines == [f"worker 1 on machine-1 is left out: {NAN.message}"]


def test_a_machine_that_is_lost_while_a_stage_is_prepared_costs_a_start(crew_of, lines):
    crew, _, ray = crew_of(machines=1)
    lost = [RayActorError()]

    def arguments(member):
        if lost:
            raise lost.pop()
        return ()

    stage = Stage("prepare", arguments, lambda member, found: None)
    crew.open(stage)
    assert run(crew) == ALL and ray.names.count("look") == 2 and len(lines) == 1
    assert crew.passed(stage) == crew.members and ray.repeats["prepare"] == 0


def differs(member, found):
    return Refusal(kind="CacheConflict", message="has other inputs") if member.number == 1 else None


def test_a_worker_with_other_inputs_ends_a_build_that_has_not_begun(crew_of):
    crew, _, _ = crew_of(looked=differs, started=False)
    with pytest.raises(CacheConflict, match=r"^worker 1 on machine-1: has other inputs$"):
        run(crew)


def test_a_worker_with_other_inputs_that_comes_later_is_left_out(crew_of, lines):
    crew, kind, ray = crew_of(looked=differs)
    assert run(crew) == ALL
    assert {number for number, _ in kind.calls} == {0} and lines == [
        "worker 1 on machine-1 is left out: has other inputs"
    ]
    assert len(ray.killed) == 1
    crew, _, _ = crew_of(looked=lambda *_: Refusal(kind="CacheConflict", message="has other inputs"))
    with pytest.raises(CacheConflict, match="machine-1: has other inputs"):
        run(crew)


def test_machines_that_come_later_are_used(crew_of, monkeypatch):
    monkeypatch.setattr(crew_module, "SECONDS_BETWEEN_LOOKS", 0)
    crew, kind, ray = crew_of(machines=1)
    do = kind.do

    def grows(self, task):
        ray.machines = 3
        return do(self, task)

    kind.do = grows
    assert run(crew) == ALL
    assert {number for number, _ in kind.calls} == {0, 1, 2}


def test_silence_is_explained_now_and_then_and_work_is_no_silence(crew_of, lines, monkeypatch):
    now, silent = [0.0], [9]
    monkeypatch.setattr(crew_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    crew, _, ray = crew_of()
    plain = ray.wait

    def late(found, **flags):
        now[0] += crew_module.SECONDS_OF_SILENCE / 2
        silent[0] -= 1
        return ([], found) if silent[0] >= 0 else plain(found, **flags)

    monkeypatch.setattr(ray, "wait", late)
    run(crew, 0), crew.until(lambda: len(crew.passed(crew._stages[0])) == 2)
    assert len(lines) == 3
    (line,) = set(lines)
    assert line.startswith("waiting for the cluster to start 2 workers without GPUs, one a machine; it has 0 free GPUs")
    silent[0] = 9
    assert run(crew) == ALL and len(lines) == 3
