"""Several processes read the same inputs, tokenise once, and end together: with one line, and none left waiting.

The processes are threads here, which meet at a barrier with a time limit: a process that waits alone fails the test.
"""

import pickle
import platform
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import build_options
from tiny import load, make_pairs, make_tokenizer, nudged, save, write_jsonl

from precompute import processes
from precompute.build import inputs
from precompute.build.__main__ import main as build_main
from precompute.build.build import build
from precompute.models import folders
from precompute.processes import Processes
from precompute.rollout.__main__ import main as rollout_main
from precompute.tokens import share
from precompute.tokens.corpus import load_corpus
from precompute.tokens.share import load_on_first
from precompute.tokens.token_store import TokenStore
from shards.cli.ranks import first_difference
from shards.errors import AlignDistilError, CacheConflict, OptionError
from shards.places.out import open_out
from student.train import ranks
from student.train.__main__ import main as train_main


class Meeting:
    """Where threads exchange values, all at once, as pickled copies."""

    def __init__(self, count):
        self.values, self.barrier = [None] * count, threading.Barrier(count, timeout=60)

    def exchange(self, rank, value):
        self.values[rank] = pickle.dumps(value)
        self.barrier.wait()
        found = [pickle.loads(text) for text in self.values]
        self.barrier.wait()
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Thread(Processes):
    meeting: Any = None

    def gather(self, value):
        return self.meeting.exchange(self.rank, value)

    def share(self, value):
        return self.gather(value)[0]


@pytest.fixture
def on_two(monkeypatch):
    """Runs work(rank) on two processes; returns the results or errors by rank."""
    here, loading, load = threading.local(), threading.Lock(), folders._load_full
    monkeypatch.setattr(Processes, "join", classmethod(lambda cls: here.processes))

    def alone(*args, **kwargs):
        """Transformers changes its own classes while it loads: of two at once, the second leaves them changed."""
        with loading:
            return load(*args, **kwargs)

    monkeypatch.setattr(folders, "_load_full", alone)

    def run(work):
        meeting = Meeting(2)

        def one(rank):
            here.processes = Thread(rank=rank, world_size=2, meeting=meeting)
            try:
                return work(rank)
            except (SystemExit, AlignDistilError) as exc:
                return exc

        with ThreadPoolExecutor(2) as threads:
            return list(threads.map(one, range(2)))

    return run


def assert_ended(found, capsys):
    """Assert that all have ended, and that one line was printed."""
    assert [type(end) for end in found] == [SystemExit, SystemExit] and [end.code for end in found] == [2, 2]
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_processes_that_read_other_data_end_with_one_line(on_two, trio_folders, pairs_file, tmp_path, capsys):
    other = write_jsonl(tmp_path / "pairs.jsonl", make_pairs(12, seed=1))
    out = tmp_path / "cache"
    found = on_two(lambda rank: build(build_options(trio_folders, [pairs_file, other][rank], out, top_k=4)))
    line = assert_ended(found, capsys)
    assert f"rank 1 on {platform.node()} has other inputs than rank 0, data.rows_sha256: expected" in line
    assert not out.exists()


def test_processes_that_read_other_models_end_with_one_line(on_two, trio_folders, pairs_file, tmp_path, capsys):
    other = dict(trio_folders) | {"dpo": save(nudged(load(trio_folders["dpo"]), 5, 0.01), tmp_path / "dpo")}
    out = tmp_path / "cache"
    found = on_two(lambda rank: build(build_options([trio_folders, other][rank], pairs_file, out, top_k=4)))
    assert "has other inputs than rank 0, models.dpo.weights_sha256: expected" in assert_ended(found, capsys)
    assert not out.exists()


def test_what_one_process_cannot_read_all_end_for(on_two, trio_folders, pairs_file, tmp_path, capsys):
    out = tmp_path / "cache"
    missing = tmp_path / "none.jsonl"
    found = on_two(lambda rank: build(build_options(trio_folders, [pairs_file, missing][rank], out, top_k=4)))
    assert assert_ended(found, capsys).endswith(
        "none.jsonl: expected a data file, a folder or a hub name, found nothing there (rank 1)"
    )


def test_the_line_of_a_build_into_a_url_names_the_url(on_two, trio_folders, pairs_file, tmp_path, capsys, monkeypatch):
    staged = tmp_path / "staging"
    place = replace(open_out("s3://bucket/cache"), folder=staged)
    monkeypatch.setattr("precompute.build.build.open_out", lambda *given: place)

    def refuse(*given):
        raise CacheConflict(f"{staged}: expected another folder")

    monkeypatch.setattr("precompute.build.build.with_sizes", refuse)
    found = on_two(lambda rank: build(build_options(trio_folders, pairs_file, "s3://bucket/cache")))
    assert "s3://bucket/cache: expected another folder" in assert_ended(found, capsys)


def test_the_first_process_tokenises_for_all(on_two, trio_folders, pairs_file, tmp_path, monkeypatch, capsys):
    settings = {"top_k": 5, "max_top_k": 12, "tokens_per_shard": 15}
    calls = []
    plain = inputs.load_corpus
    monkeypatch.setattr(inputs, "load_corpus", lambda *a, **k: (calls.append(a), plain(*a, **k))[1])
    found = on_two(lambda rank: build(build_options(trio_folders, pairs_file, tmp_path / "two", **settings)))
    assert len(calls) == 1, [type(end) for end in found]
    assert found[0].to_json() == found[1].to_json()
    again = on_two(lambda rank: build(build_options(trio_folders, pairs_file, tmp_path / "two", **settings)))
    assert len(calls) == 1 and again[1].to_json() == found[1].to_json()
    assert capsys.readouterr().out.count("nothing to do") == 1


def corpus_of(pairs_file):
    return load_corpus(str(pairs_file), tokenizer=make_tokenizer(), responses="both", sample_pairs=4)


@pytest.mark.parametrize("how", ["opened", "sent"])
def test_every_process_has_the_rows_of_the_first(how, on_two, pairs_file, monkeypatch):
    if how == "sent":
        monkeypatch.setattr(TokenStore, "opened", classmethod(lambda cls, table: None))
        monkeypatch.setattr(share, "PIECE_BYTES", 100)
    expected = corpus_of(pairs_file)

    def work(rank):
        given = {"rows_sha256": expected.data_sha256}
        return load_on_first(lambda: corpus_of(pairs_file), Processes.join(), **given)

    first, second = on_two(work)
    assert first.facts.tokens_sha256 == second.facts.tokens_sha256 == expected.tokens_sha256
    assert len(first.responses) == len(second.responses) == 24
    for mine, theirs, known in zip(first.responses, second.responses, expected.responses, strict=True):
        assert mine.sample_id == theirs.sample_id == known.sample_id
        np.testing.assert_array_equal(theirs.input_ids, known.input_ids)
        np.testing.assert_array_equal(theirs.loss_mask, known.loss_mask)
    assert first.sampled_pairs and not second.sampled_pairs


def test_a_store_is_opened_only_where_it_is_the_same_file(pairs_file):
    store = corpus_of(pairs_file).responses
    assert TokenStore.opened(store.table) is not None
    node, path, device, inode = store.table.place
    for place in (
        None,
        ("another", path, device, inode),
        (node, path, device, inode + 1),
        (node, "/proc/0/fd/1", 0, 0),
    ):
        store.table.place = place
        assert TokenStore.opened(store.table) is None


def test_rows_that_the_others_did_not_hash_end_all(on_two, pairs_file, capsys):
    found = on_two(lambda rank: load_on_first(lambda: corpus_of(pairs_file), Processes.join(), rows_sha256="0"))
    assert "expected the rows of a minute ago, got others" in assert_ended(found, capsys)


def test_a_process_whose_partners_have_ended_says_so(monkeypatch):
    def closed(*args, **kwargs):
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1234")

    monkeypatch.setattr(processes.dist, "all_gather_object", closed)
    with pytest.raises(AlignDistilError, match="expected the other processes, one has ended"):
        Processes(world_size=2).wait()


def test_trainings_of_teachers_compare_what_they_read(on_two, trio_folders, pairs_file, tmp_path, capsys):
    pytest.importorskip("trl")
    from precompute.teachers.__main__ import make_teachers
    from precompute.teachers.arguments import DPOArguments
    from precompute.teachers.options import TeacherOptions

    other = write_jsonl(tmp_path / "pairs.jsonl", make_pairs(12, seed=1))
    args = DPOArguments(max_length=64, use_cpu=True, bf16=False, report_to="none")

    def work(rank):
        data = [pairs_file, other][rank]
        options = TeacherOptions(reference=str(trio_folders["reference"]), data=str(data), out=str(tmp_path / "out"))
        make_teachers(options, args)

    assert "data.rows_sha256: expected" in assert_ended(on_two(work), capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL calls things by their old names
def test_finished_teachers_are_recognised_without_tokens(trio_folders, pairs_file, tmp_path, monkeypatch, capsys):
    pytest.importorskip("trl")
    from precompute.teachers import __main__ as teachers
    from precompute.teachers.arguments import DPOArguments
    from precompute.teachers.options import TeacherOptions

    given = {"max_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "gradient_checkpointing": None}
    args = DPOArguments(max_length=64, use_cpu=True, bf16=False, report_to="none", warmup_steps=0, **given)
    options = TeacherOptions(
        reference=str(trio_folders["reference"]), data=str(pairs_file), out=str(tmp_path / "out"), limit=4
    )
    teachers.make_teachers(options, args)
    capsys.readouterr()

    def refuse(*args, **kwargs):
        raise AssertionError("nothing is to be tokenised")

    monkeypatch.setattr(teachers, "load_corpus", refuse)
    teachers.make_teachers(options, args)
    assert capsys.readouterr().out.count("nothing to do") == 2


def test_ranks_of_a_student_compare_their_caches(sparse_cache, whole_cache, monkeypatch, capsys):
    args = SimpleNamespace(spec="teacher", train_on="chosen", seed=0, model="hub/name")
    state = SimpleNamespace(num_processes=2, is_main_process=True, wait_for_everyone=lambda: None)
    monkeypatch.setattr(ranks, "PartialState", lambda: state)
    monkeypatch.setattr(ranks, "fingerprint", str)

    def check(mine, theirs):
        other = "node-b", ranks.inputs(args, [theirs], "hub/name")
        monkeypatch.setattr(ranks, "gather_object", lambda found: [*found, other])
        ranks.require_same_inputs(args, [mine], "hub/name")

    check(sparse_cache, sparse_cache)
    with pytest.raises(SystemExit):
        check(sparse_cache, whole_cache)
    assert capsys.readouterr().err.startswith("error: rank 1 on node-b has other inputs than rank 0, shards: expected")


def test_a_reference_that_was_compared_with_its_cache_is_not_read_again(sparse_cache, monkeypatch):
    monkeypatch.setattr(ranks, "fingerprint", lambda source: pytest.fail("read again"))
    args = SimpleNamespace(spec="teacher", train_on="chosen", seed=0, model=None)
    found = ranks.inputs(args, [sparse_cache], "hub/name")["model"]
    assert found == sparse_cache.plan.identity["models"]["reference"] and found["weights_sha256"]


def test_a_difference_names_the_first_field_that_differs():
    same = ("a", {"data": {"rows": 1}})
    assert first_difference([same, same]) is None
    other = ("b", {"data": {"rows": 2}, "new": 1})
    assert first_difference([same, same, other]) == (
        "rank 2 on b has other inputs than rank 0, data.rows: expected 1, got 2"
    )


# ---- an environment that a launcher left behind

STALE = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}


@pytest.fixture
def stale(monkeypatch):
    def leave(**values):
        for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return leave


@pytest.mark.parametrize(
    ("text", "message"), [("2", "WORLD_SIZE=2 is in the environment: expected a launcher"), ("x", "got 'x'")]
)
def test_a_world_size_without_a_launcher_is_refused_in_one_line(
    text, message, stale, trio_folders, pairs_file, sparse_cache, tmp_path
):
    stale(WORLD_SIZE=text)
    models = [f"{role}={folder}" for role, folder in trio_folders.items()]
    commands = {
        build_main: ["--models", *models, "--data", str(pairs_file), "--out", str(tmp_path / "c")],
        rollout_main: ["--model", models[0][10:], "--data", str(pairs_file), "--out", str(tmp_path / "s.jsonl")],
        train_main: ["--shards", str(sparse_cache.folder), "--output_dir", str(tmp_path / "o"), "--use_cpu", "true"],
    }
    for main, flags in commands.items():
        with pytest.raises(OptionError) as caught:
            main(flags)
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_processes_that_never_come_are_waited_for_some_minutes_at_most(stale, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    stale(WORLD_SIZE="2", MASTER_PORT=str(port), **STALE)
    monkeypatch.setattr(processes, "LONGEST_START", timedelta(seconds=1))
    with pytest.raises(OptionError, match="expected 2 processes of a launcher such as torchrun, got") as caught:
        Processes.join()
    assert "\n" not in str(caught.value)
    assert timedelta(days=1) < processes.LONGEST_WAIT
