"""The GPU benchmark runs in small on a CPU, keeps its time limits, and never passes off a dry run as a measurement."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import dense
import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import parts as parts_module
from benchmarks.gpu import suite
from benchmarks.gpu.build import busy
from benchmarks.gpu.dtypes import angle, gradient
from benchmarks.gpu.models import make_model, moved
from benchmarks.gpu.options import PART_NAMES, GpuOptions
from benchmarks.gpu.parts import NO_GPU, PARTS, Cells, NotHere, OutOfTime, Part, limits, run_part
from benchmarks.gpu.report import DRY, GOALS, figures, page
from benchmarks.gpu.shapes import CARDS, SHAPES, VOCABULARY, card_of, floor_costs
from benchmarks.headlines import of_gpu
from shards.errors import AlignDistilError, OptionError

FLOOR = command.floor()


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """results.json and gpu.md of a dry run; pytest is not started again."""
    out = tmp_path_factory.mktemp("gpu")
    found = subprocess.CompletedProcess([], 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite.subprocess, "run", lambda command, *, stdout, **given: stdout.write("::test_a\n") and found)
        patch.setitem(os.environ, "TRITON_INTERPRET", "1")
        command.main(["--dry_run", "--repeats", "1", "--out", str(out)])
    return json.loads((out / "results.json").read_text()), (out / "gpu.md").read_text()


def table(text, heading):
    """The cells of the rows under a heading, without each row's name."""
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|")[1:] for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows[1:]]


def test_a_dry_run_fills_cells_in_every_part(dry):
    results, _ = dry
    assert list(results["parts"]) == list(PART_NAMES)
    for name, part in results["parts"].items():
        assert part["state"] == "done", (name, part)
        assert any(part["rows"].values()), name


def test_a_dry_run_shows_no_figure(dry):
    _, text = dry
    assert "A dry run" in text and ", reached" not in text and "missed" not in text
    for heading in ("The build against its floor", "The student's step", "Dtypes of the bodies", "The loader's feed"):
        cells = [cell for row in table(text, heading) for cell in row]
        assert cells and set(cells) <= {"", DRY}, heading


def test_a_dry_run_writes_no_page_of_the_docs(dry, tmp_path):
    with pytest.raises(OptionError, match="page"):
        GpuOptions(dry_run=True, page=str(tmp_path / "gpu.md"))
    (tmp_path / "results.json").write_text(json.dumps(dry[0]))
    with pytest.raises(OptionError, match="without --dry_run"):
        command.main(["--report", "--out", str(tmp_path), "--page", str(tmp_path / "page.md")])


def test_the_report_is_made_again_from_the_results_alone(dry, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(dry[0]))
    command.main(["--report", "--out", str(tmp_path)])
    assert (tmp_path / "gpu.md").read_text() == dry[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_every_row_is_there_empty_and_says_why(tmp_path):
    options = GpuOptions(parts=[name for name in PART_NAMES if name != "tests"], out=str(tmp_path))
    results = command.run(options, "python -m benchmarks.gpu")
    text = page(results)
    assert NO_GPU in text and all(part["state"] == NO_GPU for part in results["parts"].values())
    assert "1.5B, float16, triton |  |" in text and set(figures(results).values()) == {None}
    assert all(row.figure == NO_GPU for row in of_gpu(results))


def cells_of(tmp_path, seconds=100.0, planned=("a", "b")):
    return Cells(tmp_path / "part.json", planned, seconds)


def test_a_cell_is_on_disk_as_soon_as_it_is_known(tmp_path):
    cells = cells_of(tmp_path)
    cells.put("a", {"ms": 1.0})
    assert json.loads(cells.path.read_text())["rows"] == {"a": {"ms": 1.0}, "b": {}}


def test_a_row_that_goes_wrong_says_so_and_the_next_is_measured(tmp_path, capsys):
    cells = cells_of(tmp_path)
    with cells.row("a"):
        raise ValueError("broken")
    with cells.row("b"):
        raise NotHere("no such card")
    assert cells.why == {"a": "failed: ValueError: broken", "b": "no such card"}
    assert "Traceback" in capsys.readouterr().err


def test_a_part_ends_when_a_row_needs_more_time_than_is_left(tmp_path):
    cells = cells_of(tmp_path, seconds=1.0)
    with pytest.raises(OutOfTime), cells.row("a", seconds=5.0):
        raise AssertionError("measured")
    assert cells.why["a"].startswith("out of time")


def measured(cells, options):
    cells.put("a", {"ms": 1.0})
    if options.repeats == 2:
        time.sleep(600)
    if options.repeats == 3:
        os._exit(7)
    with cells.row("b"):
        assert options.repeats != 4, "wrong"


def rows_of(options):
    return ["a", "b"]


@pytest.mark.parametrize(
    ("repeats", "state"), [(1, "done"), (2, "ended after"), (3, "failed: with exit code 7"), (4, "failed: 1 of 2 rows")]
)
def test_a_part_that_ends_badly_leaves_its_cells(tmp_path, monkeypatch, repeats, state):
    monkeypatch.setattr(parts_module, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(parts_module, "PARTS", {})  # nothing to load before
    part = Part(module="test_gpu_benchmark", function="measured", planned="rows_of", share=1.0)
    seconds = 2.0 if repeats == 2 else 200.0
    monkeypatch.setattr(parts_module, "_context", lambda: parts_module.multiprocessing.get_context("fork"))
    with pytest.warns(DeprecationWarning) if sys.version_info >= (3, 12) else pytest.MonkeyPatch.context():
        found = run_part("x", part, GpuOptions(out=str(tmp_path), repeats=repeats), seconds, apart=True)
    assert found["state"].startswith(state), found
    assert found["rows"]["a"] == {"ms": 1.0}


def test_what_parts_leave_over_goes_to_the_next(tmp_path, monkeypatch):
    given = []

    def run(name, part, options, seconds, *, apart):
        given.append(seconds)
        return {"state": "done", "seconds": 10.0, "rows": {}, "why": {}, "facts": {}, "limit": seconds}

    monkeypatch.setattr(command, "run_part", run)
    monkeypatch.setitem(os.environ, "TRITON_INTERPRET", "1")
    command.run(GpuOptions(dry_run=True, parts=["tests", "loader"], seconds=90, out=str(tmp_path)), "")
    own = limits({name: PARTS[name].share for name in ("tests", "loader")}, 90)
    assert given == [own["tests"], own["loader"] + own["tests"] - 10.0]
    assert sum(limits({name: part.share for name, part in PARTS.items()}, 450).values()) == pytest.approx(450)


def test_a_failed_part_fails_the_command_after_everything_is_written(tmp_path, monkeypatch, capsys):
    failed = {"state": "failed: it broke", "seconds": 1.0, "rows": {}, "why": {}, "facts": {}, "limit": 1.0}
    monkeypatch.setattr(command, "run_part", lambda *given, **more: failed)
    monkeypatch.setitem(os.environ, "TRITON_INTERPRET", "1")
    with pytest.raises(AlignDistilError, match="loader failed: it broke"):
        command.main(["--dry_run", "--parts", "loader", "--out", str(tmp_path)])
    assert "failed: it broke" in (tmp_path / "gpu.md").read_text()


def test_the_weights_of_a_shape_are_those_of_the_model():
    for name in ("tiny", "135M"):
        shape = SHAPES[name]
        model = make_model(shape, torch.float32, torch.device("meta" if name == "135M" else "cpu"))
        matrices = sum(p.numel() for n, p in model.named_parameters() if p.ndim > 1 and "embed" not in n)
        assert matrices == shape.body_weights
    billions = {name: SHAPES[name].body_weights / 1e9 for name in ("0.5B", "1.5B", "7B")}
    assert billions == pytest.approx({"0.5B": 0.36, "1.5B": 1.31, "7B": 6.53}, rel=0.01)


def test_roles_are_different_tensors_near_each_other():
    model = make_model(SHAPES["tiny"], torch.float16, torch.device("cpu"))
    other = moved(model, 1)
    first, second = (m.get_input_embeddings().weight.float() for m in (model, other))
    assert 0.005 < (first - second).norm() / first.norm() < 0.02
    assert other.lm_head.weight is other.get_input_embeddings().weight


def test_the_arithmetic_of_the_floor_is_that_of_shapes_and_peaks():
    card = card_of("NVIDIA H100 80GB HBM3")
    costs = list(floor_costs(SHAPES["1.5B"], VOCABULARY, card))
    by_part = {cost.part: cost for cost in costs}
    heads = by_part["output layers"]
    assert heads.amount == 3 * 2 * 1536 * VOCABULARY
    assert heads.micros[0] == pytest.approx(1e6 * heads.amount / (0.5 * 989e12))
    assert by_part["vocabulary"].amount == 48 * VOCABULARY
    spans = [(round(low), round(high)) for low, high in (cost.micros for cost in costs)]
    assert spans == [(20, 26), (28, 28), (3, 4), (71, 106), (2, 4)]


def test_cards_are_found_by_name():
    names = ("NVIDIA H200", "NVIDIA H100 PCIe", "NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "GeForce RTX 4090")
    found = [card_of(name) for name in names]
    assert [card and card.name for card in found] == ["H200", "H100 PCIe", "A100-SXM4-40GB", "A100", None]
    assert len({card.name for card in CARDS}) == len(CARDS)


def test_time_that_two_kernels_share_counts_once():
    assert busy([(0, 4), (1, 2), (3, 6), (8, 9)]) == 7


def test_equal_bodies_have_no_angle_and_others_have():
    torch.manual_seed(0)
    exact = {role: torch.randn(5, 30).log_softmax(-1) for role in ("dpo", "reverse", "reference")}
    other = {role: (l_NV + 0.05 * torch.randn(5, 30)).log_softmax(-1) for role, l_NV in exact.items()}
    assert angle(exact, exact, exact["reference"], 10.0) == 0
    assert 0.5 < angle(exact, other, exact["reference"], 10.0) < 90


def test_the_gradient_of_a_dtype_is_that_of_the_dense_loss():
    torch.manual_seed(0)
    live = {role: torch.randn(5, 30).double().log_softmax(-1) for role in ("dpo", "reverse", "reference")}
    logits = torch.randn(5, 30, dtype=torch.float64, requires_grad=True)
    student = logits.log_softmax(-1)
    target, weight = dense.teacher(live, *dense.PRESETS["aligndistil"], gain=3.0)
    (expected,) = torch.autograd.grad((weight * dense.divergence("reverse_kl", student, target)).sum(), logits)
    torch.testing.assert_close(gradient(live, student.detach(), 3.0), expected, rtol=1e-9, atol=1e-12)


VERBOSE = """
tests/test_gpu.py::test_a[float32-cpu] PASSED [ 10%]
tests/test_gpu.py::test_a[float16-cpu] PASSED [ 10%]
tests/test_gpu.py::test_a[float32-cuda] SKIPPED (no GPU here) [ 20%]
tests/test_gpu.py::test_b[cuda] FAILED [ 30%]
tests/test_gpu.py::test_c PASSED [ 30%]
"""


def test_outcomes_of_tests_are_counted_by_device(tmp_path):
    found = suite.outcomes(VERBOSE)
    assert found["test_gpu.py: test_a"] == {"cpu": {"passed": 2}, "gpu": {"skipped": 1}}
    cells = cells_of(tmp_path, planned=())
    suite.fill(cells, found)
    assert cells.rows["test_gpu.py: test_a"] == {"cpu": "2 passed"}
    assert cells.why == {"test_gpu.py: test_b": "failed on gpu: 1 failed"}
    assert cells.rows[suite.ALL_TESTS] == {"cpu": "3 passed", "gpu": "1 failed, 1 skipped"}


def test_every_test_of_a_gpu_is_planned():
    text = (Path(__file__).parent / "test_gpu.py").read_text()
    names = re.findall(r"^def (test_\w+)", text, re.MULTILINE)
    assert [f"test_gpu.py: {name}" for name in names] == [
        row for row in suite.planned(GpuOptions()) if row.startswith("test_gpu.py")
    ]


def test_goals_are_judged_by_their_figures():
    build = {"build_us": 11.0, "floor_us": 10.0, "idle": 0.03}
    step = {
        "1.5B, bfloat16, sparse": {"step_ms": 1.0, "loss_less_gradients": 1},
        "1.5B, bfloat16, online": {"step_ms": 3},
    }
    rows = {"build": {"1.5B": build}, "step": step, "loader": {"0 workers": {"share": 0.2}, "1 worker": {"share": 0.0}}}
    parts = {
        name: {"rows": found, "state": "done", "why": {}, "facts": {}, "seconds": 1.0} for name, found in rows.items()
    }
    gpu = {"name": "NVIDIA H100", "bytes": 8e10, "cuda": "13"}
    settings = {"dry_run": False, "gpu": gpu, "command": "c", "processor": "p", "versions": "v"}
    results = {"settings": settings, "parts": parts, "floor": FLOOR}
    found = figures(results)
    assert found == {"build": 1.1, "idle": 0.03, "liger": None, "online": 3.0, "memory": None, "loader": 0.0}
    text = page(results)
    assert "| 1.1 or less | 1.1, reached |" in text and "| 4 or more | 3, missed |" in text
    assert "| 0.9 or less |  |" in text and "0.03, missed" in text and "| 0, reached |" in text
    assert len(of_gpu(results)) == len(GOALS)


@pytest.mark.parametrize(
    "flags",
    [
        {"parts": ["speed"]},
        {"parts": []},
        {"sizes": ["3B"]},
        {"sizes": []},
        {"seconds": 0},
        {"repeats": 0},
        {"trio": "nowhere"},
    ],
)
def test_flags_that_cannot_be_are_refused(flags):
    with pytest.raises(OptionError):
        GpuOptions(**flags)
