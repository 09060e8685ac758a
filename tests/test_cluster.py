"""A build on a cluster as its driver and its workers see it: identities, keepers, tokens, plans, connections, flags.

Ray is a stand-in in this process here; test_ray.py has the real one.
"""

import contextlib
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import build_options
from fake_cache import make_cache
from stand_in_ray import RayActorError, StandInRay
from test_crew import NAN, crew_of, lines
from tiny import make_tokenizer

from precompute.build import on_ray
from precompute.build.build import build
from precompute.build.on_ray import ClusterBuild, other_inputs, shard_tasks
from precompute.build.options import BuildOptions
from precompute.build.steps import Left
from precompute.build.worker import BuildWorker, Look, require_plan
from precompute.cluster import keeper as keeper_module
from precompute.cluster.answers import Refusal, answer
from precompute.cluster.keeper import Keeper, once, tokens_on
from precompute.cluster.members import Member, Stage
from precompute.cluster.options import ClusterOptions
from precompute.cluster.session import session
from precompute.cluster.sizes import Sizes
from precompute.numerics import versions
from precompute.tokens import token_store
from precompute.tokens.corpus import load_corpus
from precompute.tokens.token_store import TokenStore
from shards.errors import CacheMissing, NonFiniteLogits, OptionError
from shards.places.out import open_out

__all__ = ["crew_of", "lines"]  # fixtures


def test_a_difference_names_the_field():
    assert other_inputs({"a": {"b": 1}}, {"a": {"b": 1}}) is None
    assert other_inputs({"a": {"b": 1}}, {"a": {"b": 2}}).message.endswith("than the build, a.b: expected 1, got 2")
    assert other_inputs({"a": 1}, {"a": 1, "b": 2}).message.startswith("has other inputs than the build, b: expected")
    assert "a.c: expected" in other_inputs({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}).message


@pytest.fixture
def driven(crew_of):
    """A build as its driver sees it, with a crew of stand-ins."""
    crew, _, ray = crew_of(machines=3)
    return ClusterBuild(ray=ray, options=None, place=None, crew=crew, sizes=None)


def test_each_worker_is_compared_with_the_first_and_the_first_with_the_libraries_of_the_driver(driven, monkeypatch):
    stages, member = [], Member(number=0, actor=None)
    monkeypatch.setattr(driven.crew, "open", stages.append)
    driven._open_first_stages({"models": {"dpo": {"weights_sha256": "a"}}}, 1)
    look, identify = stages

    def looked(device, libraries):
        numerics = {"device": device, "versions": libraries}
        return look.take(member, Look("node", "machine", 1, torch.device("cpu"), numerics))

    other = looked("H100", versions() | {"torch": "9.9"})
    assert "has other inputs than the build, numerics.versions.torch: expected " in other.message
    assert looked("H100", versions()) is None
    assert looked("H200", versions()).message.endswith('numerics.device: expected "H100", got "H200"')
    assert identify.take(member, {"models": {"dpo": {"weights_sha256": "a"}}}) is None
    found = identify.take(member, {"models": {"dpo": {"weights_sha256": "b"}}})
    assert found.kind == "CacheConflict" and "models.dpo.weights_sha256: expected" in found.message


def test_a_machine_has_one_keeper_and_gets_another_with_its_tokens_when_that_is_lost(driven, monkeypatch):
    for name in ("ray", "ray.util", "ray.util.scheduling_strategies"):
        module = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: node)
        monkeypatch.setitem(__import__("sys").modules, name, module)
    here, there = (Member(number=0, actor=None, node_id=node) for node in ("here", "there"))
    first = driven._keeper(here)
    assert driven._keeper(here) is first and driven._keeper(there) is not first
    driven.tables |= {"here": "table", "there": "table"}
    first._worker.alive = lambda: (_ for _ in ()).throw(RayActorError())
    assert driven._keeper(here) is not first and set(driven.tables) == {"there"}


def test_batches_are_those_for_which_every_worker_has_room(driven):
    driven.crew.open(Stage("identify", lambda member: (), lambda member, found: None))
    driven.crew.until(lambda: all("identify" in member.passed for member in driven.crew.members))
    assert driven._smallest_batch() == 100


@dataclass
class Inputs:
    corpus: Any
    responses: Any = None


@pytest.mark.parametrize("lost", [False, True])
def test_tokens_are_sent_once_to_a_machine_and_one_worker_probes_the_precision(driven, store, monkeypatch, lost):
    sent, crew = [], driven.crew
    for member in crew.members:
        member.node_id = "b" if member.number == 2 else "a"
        member.actor._worker.fails["load"] = [RayActorError()] if lost else []
    monkeypatch.setattr(driven, "_keeper", lambda member: member.node_id)
    monkeypatch.setattr("precompute.build.on_ray.tokens_on", lambda ray, keeper, store: sent.append(keeper) or "table")
    driven.options, inputs = SimpleNamespace(batch_tokens="5"), Inputs(corpus=Inputs(corpus=None, responses=store))
    assert driven._load(inputs, probing=True) is inputs and driven.precision == "precision"
    crew.until(lambda: all("load" in member.passed for member in crew.members))
    loads = crew.members[0].actor._worker.loads
    assert sent == ["a", "b"] and sum(probing for _, probing in loads) == 1
    assert sorted(number for number, _ in loads) == [0, 1, 2]


def test_folders_that_are_named_from_here_are_those_of_every_worker(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    monkeypatch.setattr(on_ray, "session", lambda options: contextlib.nullcontext(StandInRay()))
    monkeypatch.setattr(ClusterBuild, "run", lambda self, stack: (self.place.folder, self.options.model_names))
    options = BuildOptions(models=["dpo=model", "reference=owner/name"], data="c", out="out", ray="auto")
    models = {"dpo": str(tmp_path / "model"), "reference": "owner/name"}
    assert on_ray.build_on_ray(options) == (tmp_path / "out", models)


def test_a_worker_has_the_threads_of_the_driver_and_says_where_it_is(imported_ray):
    imported_ray.get_runtime_context = lambda: SimpleNamespace(get_node_id=lambda: "node")
    threads = torch.get_num_threads()
    try:
        look = BuildWorker(0).look(BuildOptions(models=["dpo=a", "reference=b"], data="c", device="cpu"), 3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert (look.node_id, look.pid, str(look.device)) == ("node", os.getpid(), "cpu")


def test_a_worker_that_does_not_find_the_tokens_of_its_machine_refuses(store):
    worker, table = BuildWorker(0), store.table
    worker._facts, table.place = object(), ("elsewhere", *table.place[1:])
    assert worker.load(None, None, table, False).message.startswith("TMPDIR: expected the tokens of this machine at ")


def test_a_worker_waits_for_the_drivers_plan_and_refuses_another(tmp_path, monkeypatch):
    plan = make_cache(tmp_path / "one").plan
    other = make_cache(tmp_path / "two", pairs=3).plan
    place, waited = open_out(str(tmp_path / "out")), []

    def late(seconds):
        waited.append(seconds)
        shutil.copytree(tmp_path / "one", tmp_path / "out")

    clock = SimpleNamespace(monotonic=lambda: 0.0, sleep=late)
    monkeypatch.setattr("precompute.build.worker.time", clock)
    require_plan(place, plan)
    assert waited == [1]
    with pytest.raises(CacheMissing, match=rf"^out: expected the driver's plan in {tmp_path / 'out'}, found another$"):
        require_plan(place, other)
    times = iter([0.0, 61.0])
    clock.monotonic = lambda: next(times)
    with pytest.raises(CacheMissing, match=r"^out: expected a folder that all machines share, .*three without one$"):
        require_plan(open_out(str(tmp_path / "three")), plan)


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


def test_nothing_is_sent_to_a_machine_without_room_for_it(store, monkeypatch):
    store.table.place = ("elsewhere", *store.table.place[1:])
    monkeypatch.setattr(Keeper, "begin", lambda self, table: NAN)
    assert tokens_on(CALLED, Remote(Keeper()), store) is NAN


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

    for _ in range(2):
        assert once(CALLED, Remote(keeper), "models", refuse).message == "models: expected a folder"
    assert once(CALLED, Remote(keeper), "other", lambda: 3) == 3 and len(calls) == 1


def test_workers_wait_for_the_one_that_finds_out_and_another_does_when_that_is_lost(monkeypatch):
    keeper, waited = Keeper(), []
    with subprocess.Popen(["sleep", "60"]) as other:
        assert keeper.ask("models", other.pid) is True and keeper.ask("models", other.pid) is True
        assert keeper.ask("models", os.getpid()) is False
        monkeypatch.setattr(
            keeper_module.time, "sleep", lambda seconds: waited.append(seconds) or other.kill() or other.wait()
        )
        assert once(CALLED, Remote(keeper), "models", lambda: "mine") == "mine" and len(waited) == 1
    keeper = Keeper()
    assert keeper.ask("models", os.getppid()) is True  # it lives on
    monkeypatch.setattr(keeper_module.time, "sleep", lambda seconds: keeper.keep("models", pickle.dumps("theirs")))
    assert once(CALLED, Remote(keeper), "models", lambda: "mine") == "theirs"


def test_a_keeper_loads_no_library_of_models():
    look = "import sys, precompute.cluster.keeper; print(*{'torch', 'transformers'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout == "\n"


# ---- flags


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"workers": 2}, "workers: expected it with --ray only, got 2"),
        ({"ray": "ray://a:1"}, "ray: expected auto, HOST:PORT or local on a machine of the cluster, got 'ray://a:1'"),
        ({"ray": "auto", "workers": 0}, "workers: expected 1 or more, got 0"),
        ({"gpus_per_worker": 2}, "gpus_per_worker: expected it with --ray only, got 2"),
        ({"ray": "auto", "max_retries": -1}, "max_retries: expected 0 or more, got -1"),
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
    assert Sizes.of(ray, ClusterOptions(ray="auto", gpus_per_worker=5), "auto").wanted == 1, "none has parts of two"
    assert Sizes.of(ray, ClusterOptions(ray="auto", gpus_per_worker=0.5), "auto").wanted == 22
    assert Sizes.of(ray, ClusterOptions(ray="auto"), "cpu").wanted == 2
    assert Sizes.of(ray, ClusterOptions(ray="auto", workers=3), "auto").wanted == 3


def test_workers_without_gpus_are_spread_over_the_machines():
    assert Sizes(ray=None, workers=1, gpus=0).resources["scheduling_strategy"] == "SPREAD"
    assert Sizes(ray=None, workers=1, gpus=2).resources == {"num_cpus": 1, "num_gpus": 2}


@pytest.fixture
def imported_ray(monkeypatch):
    """What is imported as ray: a connection that is noted in `calls`."""
    calls = []
    found = SimpleNamespace(
        calls=calls,
        is_initialized=lambda: False,
        init=lambda **flags: calls.append(flags),
        shutdown=lambda: calls.append("end"),
    )
    monkeypatch.setitem(__import__("sys").modules, "ray", found)
    return found


def test_a_connection_ends_with_the_command_and_one_that_was_there_stays(imported_ray):
    with pytest.raises(ZeroDivisionError), session(ClusterOptions(ray="auto")):
        raise ZeroDivisionError
    flags, end = imported_ray.calls
    assert flags == {"address": "auto", "log_to_driver": False, "logging_level": 40} and end == "end"
    imported_ray.is_initialized = lambda: True
    with session(ClusterOptions(ray="auto")) as ray:
        assert ray is imported_ray
    assert len(imported_ray.calls) == 2


def test_a_local_cluster_listens_on_this_machine_only_and_reports_nothing(imported_ray, monkeypatch):
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    with session(ClusterOptions(ray="local", workers=999)):
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    flags = imported_ray.calls[0]
    assert (flags["_node_ip_address"], flags["include_dashboard"], flags["num_cpus"]) == ("127.0.0.1", False, 999)


def test_a_cluster_that_is_not_found_is_one_line(imported_ray):
    def refuse(**flags):
        raise ConnectionError("no cluster\nhere")

    imported_ray.init = refuse
    with (
        pytest.raises(OptionError, match=r"^ray: expected a cluster at a:1, got [^\n]+$"),
        session(ClusterOptions(ray="a:1")),
    ):
        pass


def test_a_machine_without_ray_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(OptionError, match="ray: expected the extra ray"), session(ClusterOptions(ray="auto")):
        pass


def test_the_hub_is_no_place_for_a_build_of_many_workers(trio_folders, pairs_file):
    options = build_options(trio_folders, pairs_file, "hf://datasets/me/cache", ray="local")
    with pytest.raises(OptionError, match=r"^out: expected a bucket or a shared folder with --ray, .*got hf://"):
        build(options)
