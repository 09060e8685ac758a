"""The weights benchmark runs, goes on where it stopped, and compares at the same KL what it says it compares."""

import dataclasses

import pytest
import torch
from tiny import make_llama

from benchmarks.alignment import judge as judge_module
from benchmarks.alignment import options as alignment_options
from benchmarks.alignment import train
from benchmarks.online.measure import held_out_batches
from benchmarks.weights import __main__ as command
from benchmarks.weights import options as options_module
from benchmarks.weights import trios
from benchmarks.weights.curves import compared_with, plain_curves, trio_curves
from benchmarks.weights.options import WeightsOptions
from benchmarks.weights.report import end_text, page
from benchmarks.weights.rules import NONE, Rule, rules
from examples.demo import models as demo_models
from shards import TeacherSpec
from shards.errors import OptionError
from shards.teacher.spec import strength, token_weight

TINY_BATCH = 8


def test_a_rule_is_what_its_name_says():
    found = rules([3.0], [0.1])
    assert [rule.name for rule in found] == [NONE, "lambda_t at most 3 beta", "min_strength 0.1"]
    distance_N = torch.tensor([0.0, 0.01, 0.2])
    for rule, largest in zip(found, (1000.0, 3.0, 10.0), strict=True):
        spec = TeacherSpec(beta=0.5, **rule.flags(0.5))
        assert float(token_weight(spec, strength(spec, distance_N)).max()) == pytest.approx(0.5 * largest)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_tiny_run_has_every_rule_and_goes_on_where_it_stopped(trio_folders, pairs_file, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_models, "new_model", lambda width, seed, _: make_llama(seed, width, num_hidden_layers=1))
    for module in (alignment_options, options_module, train):
        monkeypatch.setattr(module, "BATCH_SIZE", TINY_BATCH)
    monkeypatch.setitem(train.COMMON, "per_device_train_batch_size", TINY_BATCH)
    monkeypatch.setattr(judge_module, "MAX_NEW_TOKENS", 6)
    (tmp_path / "trio").symlink_to(trio_folders["dpo"].parent)
    options = WeightsOptions(
        dtypes=["float32"], caps=[0.05], half_caps=[], min_strengths=[0.1], seeds=[0], known_gains=[1.0], texts=64,
        pairs=9 * TINY_BATCH, samples_per_prompt=1, hidden_size=16, trios=[f"tiny={tmp_path / 'trio'}"],
        data=str(pairs_file), held_out_data=str(pairs_file), trio_seeds=[0], trio_steps=4, trio_rows=9,
        held_out_rows=2, trio_top_k=12, max_length=64, out=str(tmp_path / "out"),
    )  # fmt: skip
    wanted = [NONE, "lambda_t at most 0.05 beta", "min_strength 0.1"]
    results = command.run(options, "the command")
    found = results["known"]["float32"]["0"]["runs"]
    assert [run["rule"] for run in found] == wanted
    assert [[point["step"] for point in run["points"]] for run in found] == 3 * [[4, 9]]
    found = results["trios"]["tiny"]["10"]["float32"]["0"]["runs"]
    assert [run["rule"] for run in found] == wanted
    assert [[point["step"] for point in run["points"]] for run in found] == 3 * [[0, 4]]
    found = found + results["more_rates"]["tiny"]["10"]["float32"]["0"]["runs"]
    ends = [run["points"][-1]["reward"] for run in found]
    assert len(set(ends)) == 5, "every rule and learning rate reaches the student"

    for part in (command.known, command.trios):
        monkeypatch.setattr(part, "run_part", lambda *args: pytest.fail("done twice"))
    assert command.run(options, "the command") == results, "what is done is not done again"
    text = page(results)
    for part in (
        "`the command`",
        "## The known-reward task",
        "## Trio tiny, gain 10",
        "lambda_t at most 0.05 beta",
        "learning rate 3e-05",
    ):
        assert part in text
    with pytest.raises(OptionError, match="trio_steps"):
        command.run(dataclasses.replace(options, trio_steps=8), "another command")


def test_a_student_is_judged_against_the_true_teacher(trio, whole_cache):
    rows = whole_cache.read([0, 3])
    held_out = held_out_batches(trio, rows, TeacherSpec(), 18, batch_size=2)
    found = trios.judge(trio["reference"], held_out)
    (part,) = held_out
    wanted = (part.reference.exp() * (part.reference - part.teacher)).sum(-1).mean()
    assert found["kl_nats"] == pytest.approx(0, abs=1e-6)
    assert found["teacher_kl"] == pytest.approx(float(wanted), rel=1e-4)
    assert found["reward"] == pytest.approx(float((part.reference.exp() * part.reward).sum(-1).mean()), rel=1e-4)


def test_rewards_are_compared_at_the_same_kl():
    def run(rule, slope, end):
        points = [{"step": s, "reward": slope * kl, "kl_nats": kl} for s, kl in ((0, 0.0), (4, end / 2), (8, end))]
        return {"rule": rule, "rate": 2e-5, "points": points}

    parts = {
        "float32": {"0": {"runs": [run(NONE, 1.0, 2.0), run("cap", 1.0, 4.0)]}},
        "bfloat16": {"0": {"runs": [run(NONE, 0.5, 1.0), run("cap", 0.6, 1.5)]}},
    }
    more = {"float32": {"0": {"runs": [run(NONE, 0.8, 5.0) | {"rate": 1e-4}]}}}

    def less(dtype, rule, more):
        return end_text(trio_curves(parts, dtype, rule), plain_curves(parts, more, compared_with(dtype, rule)[0]))

    assert less("float32", "cap", {}) == "not reached", "a longer way is not a better one"
    assert less("float32", "cap", more) == "+20.0", "4 beside 10 / 3, on the line from 2 at 2 to 4 at 5"
    assert less("bfloat16", NONE, {}) == "-50.0", "half precision is compared with float32"
    parts["bfloat16"]["0"]["runs"].append(run(NONE, 0.5, 1.5))
    assert less("bfloat16", "cap", {}) == "+20.0", "a limit is compared with none from the same bodies"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"trios": ["a=b"]}, "trios"),
        ({"data": "pairs"}, "trios"),
        ({"trios": ["b"], "data": "x", "held_out_data": "y"}, "name=folder"),
        ({"dtypes": ["float8"]}, "dtypes"),
        ({"dtypes": []}, "dtypes"),
        ({"seeds": [0, 0]}, "seeds"),
        ({"trio_seeds": []}, "trio_seeds"),
        ({"pairs": 100}, "pairs"),
        ({"trio_steps": 0}, "trio_steps"),
    ],
)
def test_flags_that_cannot_be_are_refused(flags, named):
    with pytest.raises(OptionError, match=named):
        WeightsOptions(**flags)


def test_a_rule_that_limits_nothing_has_no_flags():
    assert Rule().flags(0.1) == {}
