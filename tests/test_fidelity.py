"""The fidelity benchmark runs, and its results obey the laws on its page."""

import json
from itertools import product

import numpy as np
import pytest
import torch
from dense import PRESETS

from benchmarks.fidelity import __main__ as command
from benchmarks.fidelity import measure, student
from benchmarks.fidelity.dense import NODES, load_roles, read_rows, score
from benchmarks.fidelity.options import FidelityOptions
from benchmarks.fidelity.report import goal_lines, page
from benchmarks.fidelity.student import CAPS, WAYS, student_angles
from benchmarks.fidelity.supports import SUPPORTS, keep, rank, scores_on
from shards import TeacherSpec
from shards.errors import OptionError

GAINS = (2.0, 5.0, 10.0, 20.0)
SPECS = {f"gain {gain:g}": TeacherSpec(gain=gain) for gain in GAINS} | {p: TeacherSpec.preset(p) for p in PRESETS}


@pytest.fixture(scope="module")
def dense(trio_folders, pairs_file):
    """Forty positions of tiny models."""
    rows = read_rows(trio_folders, str(pairs_file), rows=12, max_length=64)
    return score(load_roles(trio_folders, "float32"), rows, 40)


def exact(dense, top_k, name="ours"):
    return scores_on(dense, keep(rank(dense, SUPPORTS[name]), SUPPORTS[name], top_k))


def test_log_probs_and_next_tokens_are_those_of_the_live_models(trio_folders, trio, pairs_file):
    rows = read_rows(trio_folders, str(pairs_file), rows=3, max_length=64)
    found = score(load_roles(trio_folders, "float32"), rows, 1_000)
    places = [np.flatnonzero(row.loss_mask) for row in rows]
    next_ids = np.concatenate([row.input_ids[at] for row, at in zip(rows, places, strict=True)])
    np.testing.assert_array_equal(found.next_ids, next_ids)
    for role, model in trio.items():
        logits = [model(torch.from_numpy(row.input_ids)[None].long()).logits[0] for row in rows]
        wanted = torch.cat([l_TV[at - 1, :18].log_softmax(-1) for l_TV, at in zip(logits, places, strict=True)])
        torch.testing.assert_close(found.logprobs[role], wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_with_every_token_kept_nothing_is_lost(dense, spec):
    found = measure.row("", measure.compare_case(dense, exact(dense, dense.vocabulary_size), spec))
    assert max(found["angle"]) < 0.01 and max(map(abs, found["deficit"])) < 1e-4
    np.testing.assert_allclose(found["norm_ratio"], 1, atol=1e-4)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("name", SUPPORTS)
def test_more_tokens_never_loosen_the_bound(dense, spec, name):
    deficits = [measure.row("", measure.compare_case(dense, exact(dense, k, name), spec))["deficit"] for k in (2, 5, 9)]
    assert (np.diff(deficits, axis=0) <= 1e-6).all() and (np.array(deficits) > -1e-6).all()
    assert deficits[0][0] > 1e-3, "two tokens of eighteen lose something"


def test_the_kept_tokens_are_counted_as_asked(dense):
    for name, support in SUPPORTS.items():
        counts = [len(ids) for ids in keep(rank(dense, support), support, 6)]
        assert np.mean(counts) == pytest.approx(6, abs=0.2) and min(counts) >= 1
        assert (min(counts) == max(counts)) == support.fixed, name


def test_between_nodes_the_truth_is_within_the_bound(dense):
    rows = measure.between_nodes(dense, exact(dense, 6))
    assert len(rows) == len(measure.BETWEEN_CASES)
    for row in rows:
        assert row["over_bound"] < 1e-5 and row["partition_error"] < row["bound"]
    assert max(row["bound_max"] for row in rows) > 1e-4, "strengths between nodes have a bound above zero"


def test_a_teacher_at_a_node_is_exact(dense):
    scores = exact(dense, 6)
    distance = scores.l1_distance["reverse"]
    gain = NODES.gains[3]
    at_node = gain * distance >= NODES.strengths[3]
    assert at_node.all(), "the tiny models are far enough apart for gains to be what makes a node"
    found = measure.row("", measure.compare_case(dense, scores, TeacherSpec(gain=gain)))
    assert found["kept_error_max"] < 1e-4


def few_steps(monkeypatch):
    """From stage to stage a tenth of the steps, each ten times as far."""
    monkeypatch.setattr(student, "RATE", 10 * student.RATE)
    monkeypatch.setattr(student, "MOST_STEPS", student.MOST_STEPS // 10)


def test_every_section_of_the_page_is_there(trio_folders, pairs_file, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "SIZES", (2, 4, 9))
    few_steps(monkeypatch)
    (tmp_path / "trio").symlink_to(trio_folders["dpo"].parent)
    options = FidelityOptions(
        trios=[f"tiny={tmp_path / 'trio'}"],
        data=str(pairs_file),
        rows=4,
        positions=24,
        frontier_positions=12,
        parameter_rows=1,
        student_rows=2,
        max_length=64,
        pairs=8,
        online_steps=0,
        top_k=4,
        out=str(tmp_path / "out"),
    )
    results = command.run(options, "the command")
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    tiny = results["trios"]["tiny"]
    assert len(tiny["frontier"]) == 3 * (len(SUPPORTS) + 1), "ours in both kinds of values"
    for row in tiny["frontier"]:
        assert row["positions"] == 12
        assert min(row["coverage"]) > 0 and max(row["coverage"]) < 1
    assert tiny["learned"]["pairs"] + tiny["learned"]["held_out_pairs"] == 8
    assert {(row["name"], row["max_weight"]) for row in tiny["student"]} == set(product(WAYS, CAPS))
    text = page(results, {})
    assert "The student in half precision" in text and "fp16 autocast | 0.3 |" in text
    parts = ("`the command`", "Angle against bytes", "Strengths between nodes", "learned, dpo/reverse")
    for part in (*parts, "Dtype of the bodies"):
        assert part in text
    assert "Offline equals online" not in text


def test_a_student_in_float16_turns_less_than_one_in_bfloat16_and_the_output_layer_alone_less_than_all(
    trio_folders, pairs_file, monkeypatch
):
    few_steps(monkeypatch)
    rows = read_rows(trio_folders, str(pairs_file), rows=3, max_length=64)
    models = load_roles(trio_folders, "float32")
    dense_ = score(models, rows, sum(int(row.loss_mask.sum()) for row in rows))
    model = models["reference"].model.requires_grad_(True)
    found = {
        (row["name"], row["max_weight"]): row
        for row in student_angles(model, rows, exact(dense_, 9), dense_.vocabulary_size)
    }
    for cap in CAPS:
        at = [np.array(found[way, cap]["angle"]) for way in WAYS]
        float16_head, bfloat16_head, fp16, bf16 = at
        assert (float16_head > 0).all() and (float16_head < fp16).all() and (fp16 < 10).all()
        assert (2 * float16_head < bfloat16_head).all() and (2 * fp16 < bf16).all()


def test_a_page_can_come_from_several_runs(trio_folders, pairs_file, tmp_path):
    (tmp_path / "trio").symlink_to(trio_folders["dpo"].parent)
    common = {"trios": [f"tiny={tmp_path / 'trio'}"], "data": str(pairs_file), "rows": 2, "positions": 8, "top_k": 4}
    first = FidelityOptions(**common, tables=["between"], out=str(tmp_path / "first"))
    command.run(first, "first command")
    reasons = ["learned=too long", "parameters=too large"]
    join = [str(tmp_path / "first" / "results.json")]
    second = FidelityOptions(
        **common, tables=["entropy", "divergences"], left_out=reasons, join=join, out=str(tmp_path / "second")
    )
    text = page(command.run(second, "second command"), {})
    assert "Measured by `first command`.\nThe tables entropy, divergences by `second command`." in text
    assert "### Strengths between nodes" in text and "### Divergences and entropy" in text
    assert "### The learned strength\n\nNot measured: too long." in text and "Angle against bytes" not in text
    assert "### Over the student's parameters\n\nNot measured: too large." in text


def test_tables_of_a_later_run_replace_those_of_an_earlier_one():
    def run(tables, command, left_out):
        return {"trios": {"a": {**tables, "commands": dict.fromkeys(tables, command), "left_out": left_out}}}

    trio = command.joined([run({"x": 1, "y": 2}, "first", {"p": "q"}), run({"y": 3}, "second", {})])["trios"]["a"]
    assert trio == {"x": 1, "y": 3, "commands": {"x": "first", "y": "second"}, "left_out": {"p": "q"}}


def test_the_goal_is_reached_by_the_fewest_bytes_or_said_to_be_missed():
    def size(top_k, angle, deficit, values="compact"):
        row = {"support": "ours", "values": values, "top_k": top_k, "mean": top_k, "bytes": 8.0 * top_k}
        return row | {"angle": [angle] * 3, "deficit": [deficit] * 3}

    plain = size(64, 1.0, 0.02, "float32")
    rows = [plain, size(96, 0.3, 0.005), size(128, 0.2, 0.005), size(192, 0.1, 0.004)]
    assert "buy a mean of 64 tokens, float32: 1.00 degrees and 2.00%" in goal_lines("0.1", rows)[0]
    assert "First reached with a mean of 128 tokens" in goal_lines("0.1", rows)[1]
    assert "2.00 of them" in goal_lines("0.1", rows)[1]
    assert "No size" in goal_lines("0.1", rows[:2])[1]
    assert goal_lines("another", rows) == []


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"trios": ["a=b"]}, "trios and data"),
        ({"data": "pairs"}, "trios and data"),
        ({"trios": ["b"], "data": "pairs"}, "name=folder"),
        ({"rows": 0}, "rows"),
        ({"pairs": -1}, "pairs"),
        ({"online_steps": -1}, "online_steps"),
        ({"tables": ["speed"]}, "tables"),
        ({"left_out": ["speed=none"]}, "left_out"),
        ({"left_out": ["dtypes=none"]}, "left_out"),
    ],
)
def test_flags_that_cannot_be_are_refused(flags, named):
    with pytest.raises(OptionError, match=named):
        FidelityOptions(**flags)
