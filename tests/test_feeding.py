"""The pipeline around the forward passes: writers, work ahead of time, results behind time, and the time of stages."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import build_options
from tiny import make_llama, make_tokenizer

from precompute.build import inputs as inputs_module
from precompute.build.build import build
from precompute.build.report import times_text
from precompute.build.work import models as model_work
from precompute.build.work import shard_work
from precompute.feeding.order import ahead, one_behind
from precompute.feeding.stages import HostMarks, Stages, Times
from precompute.feeding.transfer import Transfer
from precompute.feeding.writers import MOST_WRITERS, Writers, writers_for
from precompute.models.role_model import RoleModel
from precompute.scoring.device_scores import joined
from precompute.scoring.score import Scorer
from precompute.scoring.support import SupportRule, summarise, summarised
from precompute.tokens.encode import encode_all
from precompute.tokens.tokenized import TokenizedResponse
from shards.errors import NonFiniteLogits
from shards.format.nodes import StrengthNodes
from shards.format.schema import Pair

V = 18
PAIRS = (Pair("dpo", "reverse"), Pair("reference", "reference"))
SETTINGS = {"top_k": 5, "max_top_k": 12, "tokens_per_shard": 15}


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("given_up", [lambda: ahead(str, range(9), 2), lambda: encoded(range(300))])
def test_a_generator_that_is_given_up_waits_for_no_thread(given_up, monkeypatch):
    """Garbage collection closes it, in any thread: in one that is being started it would wait for ever."""
    plain, waited = ThreadPoolExecutor.shutdown, []
    monkeypatch.setattr(
        ThreadPoolExecutor,
        "shutdown",
        lambda pool, wait=True, **given: (waited.append(wait), plain(pool, wait, **given)),
    )
    results = given_up()
    next(results)
    results.close()
    assert waited == [False]


def encoded(numbers):
    return encode_all(((number, {"text": "the cat"}) for number in numbers), make_tokenizer())


class LateMarks(HostMarks):
    """A device that works through what it is given, one unit of work after the other, while the host goes on."""

    def __init__(self, clock):
        super().__init__(clock)
        self.clock, self.free_at = clock, 0.0
        self.mark = lambda: max(self.free_at, self.clock.now)

    def give(self, seconds):
        self.free_at = max(self.free_at, self.clock.now) + seconds

    def passed(self, mark):
        return mark <= self.clock.now


class Late(Transfer):
    """Copies that are made when they are waited for, and a log of what was begun and what was waited for."""

    ahead = 2

    def __init__(self):
        self.log = []
        self.threads = set()

    def pinned(self, tensor):
        self.threads.add(threading.current_thread().name)
        return tensor.clone()

    def fetch(self, tensors):
        if len(tensors) == 1:  # not the values of a chunk
            return Transfer().fetch(tensors)
        number = sum(word == "begun" for word, _ in self.log)
        self.log.append(("begun", number))
        return _LateFetch(self, number, tensors)


class _LateFetch:
    def __init__(self, transfer, number, tensors):
        self.transfer, self.number, self.tensors = transfer, number, [tensor.clone() for tensor in tensors]

    def wait(self):
        self.transfer.log.append(("waited", self.number))
        return self.tensors

    def more(self, tensors):
        return _LateFetch(self.transfer, self.number, tensors)


def make_row(number, prompt, response):
    ids = np.random.default_rng(number).integers(3, V, prompt + response).astype(np.int32)
    return TokenizedResponse(
        sample_id=f"{number}/chosen",
        pair_id=number,
        chosen=True,
        input_ids=ids,
        response_start=prompt,
        loss_mask=np.arange(len(ids)) >= prompt,
        truncated=False,
        prompt_is_prefix=True,
    )


BATCHES = [[make_row(0, 3, 7), make_row(1, 2, 5)], [make_row(2, 4, 2)], [make_row(3, 2, 9)]]
RULE = SupportRule(lowest=1, highest=9, log_threshold=-4.0)


@pytest.fixture(scope="module")
def scorer():
    models = {role: RoleModel(role, make_llama(seed), V) for seed, role in enumerate(("reference", "dpo", "reverse"))}
    return Scorer(models=models, pairs=PAIRS, nodes=StrengthNodes(), chunk_positions=4, device=torch.device("cpu"))


def same(mine, theirs):
    for field in dataclasses.fields(mine):
        a, b = getattr(mine, field.name), getattr(theirs, field.name)
        pairs = [(a[key], b[key]) for key in b] if isinstance(b, dict) else [(a, b)]
        assert all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs), field.name


def test_stages_add_up_to_the_wall_time():
    clock = Clock()
    stages = Stages(clock=clock)
    stages.begin()
    for step, (what, seconds) in enumerate([("bodies", 3), ("vocabulary", 5), ("bodies", 2), ("vocabulary", 7)]):
        with stages.waiting("input"):
            clock.now += 0.25
        with stages.work(what):
            clock.now += seconds
        clock.now += step
    with stages.waiting("writers"):
        clock.now += 4
    stages.wrote(9.0)
    times = stages.end()
    assert times == Times(wall=28.0, bodies=5, vocabulary=12, idle=11.0, input=1.0, writers=4.0, writing=9.0)
    assert times.bodies + times.vocabulary + times.idle == times.wall == clock.now
    twice = times + times
    assert (twice.wall, twice.idle, twice.writing) == (56, 22, 18)
    assert "17.9% bodies, 42.9% output layers and vocabulary, 39.3% device idle" in " ".join(
        times_text(times, 1).split()
    )
    assert times_text(Times(), 1) == ""


def test_a_new_beginning_forgets_what_was_before():
    clock = Clock()
    stages = Stages(clock=clock)
    with stages.work("bodies"):
        clock.now += 3
    stages.begin()
    clock.now += 1
    assert stages.end() == Times(wall=1, idle=1)


def test_a_device_that_works_while_the_host_goes_on_is_idle_only_between_its_works():
    clock = Clock()
    marks = LateMarks(clock)
    stages = Stages(marks, clock)
    stages.begin()
    for _ in range(3):  # given in no time: the device works without a gap
        with stages.work("bodies"):
            marks.give(2)
        with stages.work("vocabulary"):
            marks.give(1)
    clock.now = 10.0  # it has ended at 9
    with stages.work("bodies"):
        marks.give(4)
    with stages.waiting("results"):
        clock.now = 14.0
    times = stages.end()
    assert times == Times(wall=14, bodies=10, vocabulary=3, idle=1, results=4)


def test_work_is_done_ahead_in_order_and_not_further_ahead_than_asked():
    taken = []
    results = ahead(lambda item: item * 10, (taken.append(i) or i for i in range(6)), 2)
    assert not taken
    assert next(results) == 0
    assert taken == [0, 1, 2]
    assert list(results) == [10, 20, 30, 40, 50]
    assert list(ahead(str, range(3), 0)) == ["0", "1", "2"]
    assert list(ahead(str, [], 2)) == []


def test_an_error_of_work_ahead_is_raised_where_its_result_is_due():
    def work(item):
        return 1 / (item - 2)

    results = ahead(work, range(4), 2)
    assert [next(results), next(results)] == [-0.5, -1.0]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_items_one_behind_come_after_the_next_one_is_made():
    made = []
    items = (made.append(i) or i for i in range(3))
    assert [(item, len(made)) for item in one_behind(items)] == [(0, 2), (1, 3), (2, 3)]
    assert list(one_behind([])) == []


def test_writers_begin_no_more_tasks_than_they_may_and_take_every_result():
    gate, running, most, taken = threading.Event(), [], [], []

    def task(number):
        running.append(number)
        most.append(len(running))
        gate.wait(10)
        running.remove(number)
        return number

    with Writers(2, taken.append, Stages()) as writers, ThreadPoolExecutor(1) as opener:
        for number in range(7):
            if number == 2:
                opener.submit(gate.set)
            writers.submit(lambda number=number: task(number))
            assert len(writers._begun) <= 2
    assert sorted(taken) == list(range(7)) and max(most) <= 2


def test_an_error_of_a_task_is_raised_at_the_next_check_and_later_tasks_are_not_begun():
    done = []

    def fail():
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"), Writers(1, done.append, Stages()) as writers:
        writers.submit(fail)
        writers.submit(lambda: 1)
    assert done == []


def test_one_thread_writes_beside_a_cpu_and_more_beside_another_device(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    found = [writers_for(cpu, 1), writers_for(cuda, 1), writers_for(cuda, 4), writers_for(cuda, 16)]
    assert found == [1, 6, 1, 1]
    monkeypatch.setattr("os.cpu_count", lambda: 128)
    assert writers_for(cuda, 1) == MOST_WRITERS


def test_the_host_is_one_chunk_behind_and_the_values_are_the_same(scorer):
    plain = [scores for batch in scorer.score(BATCHES, RULE) for scores in batch]
    late = dataclasses.replace(scorer, transfer=Late())
    found = [scores for batch in late.score(iter(BATCHES), RULE) for scores in batch]
    assert len(found) == len(plain) == 4
    for mine, theirs in zip(found, plain, strict=True):
        same(mine, theirs)
    first = list(dict.fromkeys(late.transfer.log))
    chunks = 3 + 1 + 3
    expected = [("begun", 0)]
    for number in range(1, chunks):  # across batches too
        expected += [("begun", number), ("waited", number - 1)]
    assert first == [*expected, ("waited", chunks - 1)]
    assert "MainThread" not in late.transfer.threads, "packed on a thread"


def test_models_in_turn_give_the_same_values_late_too(scorer):
    plain = [scores for batch in scorer.score(BATCHES, RULE) for scores in batch]
    late = dataclasses.replace(scorer, transfer=Late(), one_at_a_time=True)
    for mine, theirs in zip([s for batch in late.score(BATCHES, RULE) for s in batch], plain, strict=True):
        same(mine, theirs)


@pytest.mark.parametrize(("where", "value"), [("hidden states", torch.nan), ("logits", 1e6)])
def test_what_is_not_finite_is_named_one_chunk_later(scorer, where, value):
    class Broken(RoleModel):
        def hidden(self, *args):
            found = super().hidden(*args)
            if len(found) > 1:
                found[1, 7] = value
            return found

        def logits(self, hidden_NH):
            return super().logits(hidden_NH).masked_fill((hidden_NH == 1e6).all(-1, keepdim=True), torch.inf)

    models = {**scorer.models, "dpo": Broken("dpo", make_llama(1), V)}
    late = dataclasses.replace(scorer, models=models, transfer=Late())
    got = "nan" if where == "hidden states" else "inf"
    with pytest.raises(
        NonFiniteLogits, match=f"^dpo: expected finite {where}, got {got} for sample 3/chosen at token 8$"
    ):
        list(late.score([[BATCHES[1][0], BATCHES[2][0]]], RULE))
    begun = [entry for entry in late.transfer.log if entry[0] == "begun"]
    assert len(begun) == (2 if where == "hidden states" else 3)


def test_entries_behind_the_counts_are_left_on_the_device():
    torch.manual_seed(0)
    logprobs = {role: (3 * torch.randn(6, V)).log_softmax(-1) for role in ("reference", "dpo", "reverse")}
    given = {"rule": RULE, "pairs": PAIRS, "nodes": StrengthNodes()}
    exact = joined(list(summarised(logprobs, torch.arange(6), **given)))
    longer = dataclasses.replace(
        exact,
        support_ids=torch.cat([exact.support_ids, torch.full((7,), -1, dtype=torch.int32)]),
        logprobs={role: torch.cat([l_M, torch.full((7,), torch.nan)]) for role, l_M in exact.logprobs.items()},
    )
    same(longer.fetch(Late()).wait().scores, summarise(logprobs, torch.arange(6), **given))


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("writers", [2, 5])
def test_the_bytes_are_the_same_for_any_number_of_writers(trio_folders, pairs_file, tmp_path, monkeypatch, writers):
    build(build_options(trio_folders, pairs_file, tmp_path / "one", **SETTINGS))
    monkeypatch.setattr(model_work, "writers_for", lambda *args: writers)
    monkeypatch.setattr(inputs_module, "transfer_for", lambda device: Late())
    build(build_options(trio_folders, pairs_file, tmp_path / "more", **SETTINGS))
    assert contents(tmp_path / "more") == contents(tmp_path / "one")


def test_an_error_of_a_writer_ends_the_build_before_the_next_shard_is_written(
    trio_folders, pairs_file, tmp_path, monkeypatch
):
    batches, checks = [], []
    plain_score, plain_check = Scorer.score, Writers.check

    def score(self, given, rule):
        for found in plain_score(self, given, rule):
            batches.append(len(found))
            yield found

    def check(self):
        checks.append(len(batches))
        plain_check(self)

    def full(*args):
        raise OSError("no space left")

    monkeypatch.setattr(shard_work, "write_shard", full)
    monkeypatch.setattr(Scorer, "score", score)
    monkeypatch.setattr(Writers, "check", check)
    monkeypatch.setattr(model_work, "tokens_per_second", lambda *args: None)
    with pytest.raises(OSError, match="no space left"):
        build(build_options(trio_folders, pairs_file, tmp_path / "a", batch_tokens=1, **SETTINGS))
    assert set(range(1, len(batches) + 1)) <= set(checks), "looked for after every batch"
    assert sum(batches) < 12, "not all rows are scored"


def test_the_summary_says_where_the_time_went_and_the_manifest_does_not(trio_folders, pairs_file, tmp_path, capsys):
    build(build_options(trio_folders, pairs_file, tmp_path / "a", **SETTINGS))
    printed = " ".join(capsys.readouterr().out.split())
    assert "of scoring: " in printed and "% device idle" in printed and "s for writers, who worked" in printed
    assert "idle" not in (tmp_path / "a" / "manifest.json").read_text()
