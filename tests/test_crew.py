"""Tasks on the workers of a cluster: each is done once, lost workers cost what they had in work, errors are one line.

Ray is a stand-in in this process here; test_ray.py has the real one.
"""

import os
from types import SimpleNamespace

import pytest
from conftest import build_options
from stand_in_ray import RayActorError, RayTaskError, StandInRay
from tiny import make_tokenizer

from precompute.build.build import build
from precompute.build.on_ray import other_inputs, shard_tasks
from precompute.build.options import BuildOptions
from precompute.build.steps import Left
from precompute.cluster import crew as crew_module
from precompute.cluster.answers import Refusal, answer
from precompute.cluster.crew import Crew, WorkersLost
from precompute.cluster.keeper import Keeper, tokens_on
from precompute.cluster.members import Stage, Task
from precompute.cluster.options import ClusterOptions
from precompute.cluster.session import session
from precompute.cluster.sizes import Sizes
from precompute.tokens import token_store
from precompute.tokens.corpus import load_corpus
from precompute.tokens.token_store import TokenStore
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
        kind = type("Kind", (Worker,), {"fails": dict(fails or {}), "calls": []})
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


def test_a_difference_names_the_field():
    assert other_inputs({"a": {"b": 1}}, {"a": {"b": 1}}) is None
    assert other_inputs({"a": {"b": 1}}, {"a": {"b": 2}}).message.endswith("than the build, a.b: expected 1, got 2")


def test_shards_that_are_there_are_read_back_in_tasks():
    tasks = shard_tasks(Left([3], list(range(9, 20))))
    assert [task.arguments for task in tasks] == [([3], []), ([], list(range(9, 17))), ([], [17, 18, 19])]


def test_an_error_of_the_disk_is_a_refusal_and_a_bug_is_not():
    def full():
        raise OSError(28, "No space left on device", "part-00000.arrow")

    assert "part-00000.arrow: expected to be able to read and write, got No space left" in answer(full).message
    with pytest.raises(ZeroDivisionError):
        answer(lambda: 1 / 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        answer(lambda: os.close(-1))
    assert isinstance(NAN.error("worker 1"), NonFiniteLogits) and str(NAN.error("worker 1")).startswith("worker 1: dpo")


# ---- tokens


class Remote:
    """The methods of a keeper, called at once."""

    def __init__(self, keeper):
        self._keeper = keeper

    def __getattr__(self, name):
        return SimpleNamespace(remote=getattr(self._keeper, name))


CALLED = SimpleNamespace(get=lambda value: value)


@pytest.fixture
def store(pairs_file):
    found = load_corpus(str(pairs_file), tokenizer=make_tokenizer(), responses="both").responses
    assert isinstance(found, TokenStore)
    return found


def test_on_the_drivers_machine_its_own_tokens_are_opened(store):
    assert tokens_on(CALLED, Remote(Keeper()), store) is store.table


def test_another_machine_receives_the_tokens_once_and_refuses_other_bytes(store, monkeypatch):
    monkeypatch.setattr("precompute.cluster.keeper.PIECE_BYTES", 100)
    store.table.place = ("elsewhere", *store.table.place[1:])
    keeper = Keeper()
    table = tokens_on(CALLED, Remote(keeper), store)
    assert table.place[0] == token_store.platform.node()
    theirs = TokenStore.opened(table)
    assert [row.input_ids.tolist() for row in theirs] == [row.input_ids.tolist() for row in store]
    plain = Keeper.receive
    monkeypatch.setattr(Keeper, "receive", lambda self, piece: plain(self, bytes(len(piece))))
    refusal = tokens_on(CALLED, Remote(Keeper()), store)
    assert isinstance(refusal, Refusal) and refusal.message.startswith("data.tokens: expected bytes with sha256")


def test_a_transfer_that_was_broken_off_begins_anew(store):
    store.table.place = ("elsewhere", *store.table.place[1:])
    keeper = Keeper()
    assert keeper.begin(store.table) is None and keeper.receive(b"half") is None
    assert not isinstance(tokens_on(CALLED, Remote(keeper), store), Refusal)


def test_what_a_machine_finds_out_is_found_out_once_a_refusal_too():
    keeper, calls = Keeper(), []

    def refuse():
        calls.append(1)
        raise OptionError("models: expected a folder")

    assert [keeper.once("models", refuse).message for _ in range(2)] == ["models: expected a folder"] * 2
    assert keeper.once("other", lambda: 3) == 3 and len(calls) == 1


# ---- flags


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"workers": 2}, "workers: expected it with --ray only, got 2"),
        ({"ray": "ray://a:1"}, "ray: expected auto, HOST:PORT or local on a machine of the cluster, got 'ray://a:1'"),
        ({"ray": "auto", "workers": 0}, "workers: expected 1 or more, got 0"),
        (
            {"ray": "auto", "device": "cuda:1"},
            "device: expected auto, cuda or cpu, since Ray gives",
        ),
    ],
)
def test_flags_of_a_cluster_that_mean_nothing_are_refused(flags, message):
    with pytest.raises(OptionError) as caught:
        BuildOptions(models=["dpo=a", "reference=b"], data="c", **flags)
    assert str(caught.value).startswith(message)


def test_a_gpu_by_number_is_refused_under_a_launcher(monkeypatch):
    launched = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OptionError, match="since a launcher gives each process its GPU, got 'cuda:1'"):
        BuildOptions(models=["dpo=a", "reference=b"], data="c", device="cuda:1")
    with pytest.raises(OptionError, match="ray: expected one process"):
        BuildOptions(models=["dpo=a", "reference=b"], data="c", ray="auto")


def test_workers_are_as_many_as_there_are_gpus_for():
    machines = [
        {"Alive": alive, "Resources": {"GPU": float(gpus)}} for alive, gpus in ((True, 8), (True, 3), (False, 8))
    ]
    ray = SimpleNamespace(nodes=lambda: machines)
    assert Sizes.of(ray, ClusterOptions(ray="auto"), "auto").wanted == 11
    assert Sizes.of(ray, ClusterOptions(ray="auto", gpus_per_worker=2), "auto").wanted == 5
    assert Sizes.of(ray, ClusterOptions(ray="auto", gpus_per_worker=0.5), "auto").wanted == 22
    assert Sizes.of(ray, ClusterOptions(ray="auto"), "cpu").wanted == 2
    assert Sizes.of(ray, ClusterOptions(ray="auto", workers=3), "auto").wanted == 3


def test_a_machine_without_ray_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(OptionError, match="ray: expected the extra ray"), session(ClusterOptions(ray="auto")):
        pass


def test_the_hub_is_no_place_for_a_build_of_many_workers(trio_folders, pairs_file):
    options = build_options(trio_folders, pairs_file, "hf://datasets/me/cache", ray="local")
    with pytest.raises(OptionError, match=r"^out: expected a bucket or a shared folder with --ray, .*got hf://"):
        build(options)
