"""The step benchmark runs, and the steps that it compares have the same loss."""

import json

import pytest
import torch

from benchmarks.step.__main__ import main
from benchmarks.step.bench import make_bench
from benchmarks.step.measure import loader_wait, peak_bytes
from benchmarks.step.options import StepOptions
from benchmarks.step.report import break_even_runs, figures
from benchmarks.step.steps import DENSE, DENSE_RESPONSES, ONLINE, ONLINE_LOGGED, SPARSE, TWICE, Steps
from shards.errors import OptionError

V = 40
TOY = {
    **{"hidden_size": 16, "layers": 1, "heads": 2, "vocabulary": V, "rows": 2, "sequence_length": 12},
    **{"prompt_tokens": 4, "top_k": 6, "chunk_positions": 5, "repeats": 1, "loader_batches": 3, "device": "cpu"},
}


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """With every token kept."""
    return Steps(make_bench(StepOptions(**TOY | {"top_k": V}, out=str(tmp_path_factory.mktemp("steps")))))


def left_behind(steps, work):
    steps.clear()
    work()
    found = torch.cat([grad.flatten() for grad in steps.gradients().values()])
    steps.clear()
    return found


@pytest.mark.parametrize(
    ("first", "second", "tolerance"),
    [
        (SPARSE, ONLINE, 5e-4),  # measured: 9e-5, from compact values
        (SPARSE, TWICE, 1e-5),
        (DENSE, DENSE_RESPONSES, 1e-5),
        (ONLINE, ONLINE_LOGGED, 1e-6),
    ],
)
def test_steps_of_the_same_loss_leave_the_same_gradients(steps, first, second, tolerance):
    works = steps.whole()
    ours, theirs = left_behind(steps, works[first]), left_behind(steps, works[second])
    assert theirs.norm() > 0
    assert (ours - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.parametrize("name", [SPARSE, TWICE, DENSE, DENSE_RESPONSES])
def test_a_loss_alone_leaves_the_output_layers_gradient_of_its_step(steps, name):
    head = steps.student.get_output_embeddings().weight
    found = []
    for works in (steps.whole(), steps.losses()):
        steps.clear()
        works[name]()
        found.append(head.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-7)


def test_peak_memory_counts_what_is_there_at_once():
    left = []

    def work():
        first = torch.ones(1000)
        second = first + 1
        del first
        left.append(torch.cat([second, second]))

    for _ in range(2):  # the profiler's own total goes on from one to the next, with what was left behind
        assert peak_bytes(work, torch.device("cpu")) == pytest.approx(12_000, abs=64)


def test_the_first_batch_of_a_loader_is_not_waited_for(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("benchmarks.step.measure.time.perf_counter", lambda: now[0])

    def batches():
        for seconds in (100, 2, 4):
            now[0] += seconds
            yield seconds

    def step(batch):
        now[0] += 1 if batch < 100 else 50

    assert loader_wait(batches(), step, torch.device("cpu")) == {"wait_seconds": 3, "step_seconds": 1}


def test_every_number_of_the_page_is_there(tmp_path):
    pytest.importorskip("matplotlib")
    flags = [f"--{name}={value}" for name, value in TOY.items()]
    main([*flags, "--growth", "1", "2", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text())
    assert all(seconds > 0 for seconds in (*results["seconds"].values(), *results["loss_seconds"].values()))
    assert results["settings"]["positions"] == 16 and results["build"]["rows"] == 6
    points = results["growth"]
    assert [point["value"] for point in points["vocabulary"]] == [V, 2 * V]
    assert [point["value"] for point in points["hidden_size"]] == [16, 32]
    for first, second in (points[axis] for axis in ("rows", "sequence_length", "vocabulary")):
        assert second["loss_bytes"][DENSE]["peak"] > 1.5 * first["loss_bytes"][DENSE]["peak"]
    text = (tmp_path / "results.md").read_text()
    assert "Liger's kernels need a GPU" in text and "(growth.svg)" in text
    assert text.count("asked for") == len(figures(results)) and text.count("paid for") == 2
    assert (tmp_path / "growth.svg").read_text().count("sequence length") == 1


@pytest.mark.parametrize(("online", "runs"), [(3.0, 2.0), (1.0, float("inf"))])
def test_a_cache_has_paid_for_itself_when_the_seconds_saved_are_those_of_the_build(online, runs):
    results = {"seconds": {SPARSE: 0.75, ONLINE: online}, "loader": {"1": {"wait_seconds": 0.25}}}
    assert break_even_runs(results, 4.0) == runs


@pytest.mark.parametrize(
    "flags",
    [
        *({name: 0} for name in ("hidden_size", "layers", "heads", "rows", "prompt_tokens", "top_k", "repeats")),
        {"heads": 3},
        {"sequence_length": 25},
        {"vocabulary": 20},
        {"loader_batches": 1},
        {"growth": [0.0]},
        {"dtype": "half"},
    ],
)
def test_flags_that_cannot_be_are_refused(flags):
    with pytest.raises(OptionError):
        StepOptions(**flags)
