"""precompute.check: a cache that agrees with its models passes, any other is found and named."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import dense
import numpy as np
import pytest
import torch
from conftest import ALL_PAIRS, build_options
from safetensors.torch import load_file, save_file
from tiny import WORDS, load, make_llama, make_pairs, make_tokenizer, make_trio, save, write_jsonl

from precompute.build.build import build
from precompute.check import __main__ as check_module
from precompute.check.__main__ import check, pick_rows
from precompute.check.__main__ import main as check_main
from precompute.check.agreement import (
    OTHER_BFLOAT16,
    OTHER_FLOAT16,
    OTHER_FLOAT32,
    OTHER_TF32,
    SAME_BFLOAT16,
    SAME_FLOAT16,
    SAME_FLOAT32,
    SAME_TF32,
    disagreements,
    tolerance,
)
from precompute.check.compare import (
    STAGES,
    loss_sums,
    sparse_divergence,
    student_logprobs,
)
from precompute.check.compare import compare as compare_spans
from precompute.check.options import CheckOptions
from precompute.check.sums import ErrorSum, LossSums
from precompute.scoring.dense import dense_divergence, dense_teacher
from precompute.scoring.support import SupportRule, summarise
from shards import Divergence, ShardCache, TeacherSpec
from shards.errors import AlignDistilError
from shards.format.encoding.spans import Span
from shards.format.nodes import StrengthNodes
from shards.format.schema import ROLES, Pair
from shards.modelfiles.precision import spacing
from shards.teacher.compose import compose

V = 18
NODES = StrengthNodes()
PAIRS = [Pair.parse(text) for text in ALL_PAIRS]
# every position's nodes are strengths of gains, or constants: gain 20 and w = 2 are among them
ON_NODES = {
    "adaptive": StrengthNodes(gains=(0.0, 10.0, 20.0), strengths=(0.0, 1e-3, 2e-3)),
    "constant": StrengthNodes(gains=(0.0, 1e-6, 2e-6), strengths=(0.0, 1.0, 2.0)),
}
DIVERGENCES = [Divergence(name="reverse_kl"), Divergence(name="forward_kl"), Divergence(name="jsd", jsd_weight=0.3)]


def random_models(seed, positions=6, size=1.5):
    """role -> log-probs (N, V), float64, and the next ids."""
    generator = torch.Generator().manual_seed(seed)

    def draw(scale):
        return scale * torch.randn(positions, V, generator=generator, dtype=torch.float64)

    reference = draw(size)
    logits = {"dpo": reference + draw(0.4), "reverse": reference + draw(0.4), "reference": reference}
    logprobs = {role: logits_NV.log_softmax(-1) for role, logits_NV in logits.items()}
    return logprobs, torch.randint(V, (positions,), generator=generator)


def cached(models, next_ids, kept, nodes=NODES):
    """The content of a cache with exactly `kept` tokens per position, in float64."""
    rule = SupportRule(lowest=kept, highest=kept, log_threshold=None)
    return summarise(models, next_ids, rule=rule, pairs=PAIRS, nodes=nodes)


def compare(models, next_ids, scores, *how):
    """For values that were stored unrounded."""
    return compare_spans(models, next_ids, scores, Span(scores, scores), *how)


def compared(seed, kept, preset, divergence=DIVERGENCES[0]):
    """A comparison at a node, where the composed teacher is exact."""
    models, next_ids = random_models(seed)
    spec = TeacherSpec.preset(preset, gain=20.0)
    nodes = ON_NODES[spec.strength]
    return compare(models, next_ids, cached(models, next_ids, kept, nodes), spec, nodes, divergence)


# ---- compare: arithmetic


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: d.name)
@pytest.mark.parametrize("preset", dense.PRESETS)
def test_the_dense_side_is_the_dense_formula_and_its_autograd(preset, divergence):
    models, _ = random_models(1)
    made = dense_teacher(models, TeacherSpec.preset(preset, gain=7.0))
    target, weight = dense.teacher(models, *dense.PRESETS[preset], gain=7.0)
    torch.testing.assert_close(made.logprobs, target, rtol=0, atol=1e-12)
    torch.testing.assert_close(made.weight, weight, rtol=1e-12, atol=0)
    for done in STAGES.values():
        logits = ((1 - done) * models["reference"] + done * target).detach().requires_grad_()
        student = logits.log_softmax(-1)
        torch.testing.assert_close(student_logprobs(models["reference"], target, done), student, rtol=0, atol=1e-12)
        expected = dense.divergence(divergence.name, student, target, divergence.jsd_weight)
        value, gradient = dense_divergence(student.detach(), target, divergence)
        torch.testing.assert_close(value, expected.detach(), rtol=0, atol=1e-12)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), logits)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: d.name)
@pytest.mark.parametrize("kept", [1, 5, V])
def test_the_sparse_side_is_the_divergence_over_buckets_and_its_autograd(kept, divergence):
    models, next_ids = random_models(2)
    scores = cached(models, next_ids, kept)
    teacher = compose(scores, TeacherSpec(gain=10.0), NODES)
    logits = models["reference"].clone().requires_grad_()
    ids = torch.from_numpy(scores.support_ids.astype(np.int64)).reshape(-1, kept)
    inside = torch.zeros(len(ids), V, dtype=torch.bool).scatter(1, ids, True)
    student = logits.log_softmax(-1)
    buckets, targets = student.gather(1, ids), torch.from_numpy(teacher.logprobs).reshape(-1, kept)
    if kept < V:
        tail = student.masked_fill(inside, -torch.inf).logsumexp(-1, keepdim=True)
        buckets = torch.cat([buckets, tail], 1)
        targets = torch.cat([targets, torch.from_numpy(teacher.tail_logprob)[:, None]], 1)
    expected = dense.divergence(divergence.name, buckets, targets, divergence.jsd_weight)
    value, gradient = sparse_divergence(student.detach(), teacher, divergence)
    torch.testing.assert_close(value, expected.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), logits)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("preset", dense.PRESETS)
def test_sums_give_the_loss_angle_and_norms_of_the_two_weighted_gradients(preset):
    models, next_ids = random_models(3)
    spec = TeacherSpec.preset(preset, gain=7.0)
    teacher = compose(cached(models, next_ids, 4), spec, NODES)
    target = dense_teacher(models, spec)
    student = student_logprobs(models["reference"], target.logprobs, 0.5)
    sums = loss_sums(student, target, teacher, DIVERGENCES[0])
    loss, gradient = dense_divergence(student, target.logprobs, DIVERGENCES[0])
    sparse_loss, sparse_gradient = sparse_divergence(student, teacher, DIVERGENCES[0])
    a, b = target.weight[:, None] * gradient, torch.from_numpy(teacher.weight)[:, None] * sparse_gradient
    assert sums.positions == len(loss)
    assert sums.dense_loss == pytest.approx(float((target.weight * loss).sum()), rel=1e-12)
    assert sums.deficit == pytest.approx(
        1 - float((torch.from_numpy(teacher.weight) * sparse_loss).sum() / (target.weight * loss).sum()), abs=1e-12
    )
    assert sums.norm_ratio == pytest.approx(float(b.norm() / a.norm()), rel=1e-12)
    assert sums.angle_degrees == pytest.approx(dense.angle_degrees(a.flatten(), b.flatten()), rel=1e-9)
    assert sums.angle_degrees > 0.1


# an acos of the cosine is 0 under 1e-8; where the lengths differ, some digits of the smallest angles go here too
@pytest.mark.parametrize(("length", "tiny"), [(1.0, 1e-12), (0.9, 1e-6), (3.0, 1e-6)])
def test_angles_are_exact_from_tiny_to_obtuse_whatever_the_lengths(length, tiny):
    for angle in (tiny, 1e-3, 1.0, math.pi / 2, 3.0):
        a, b = np.array([2.0, 0.0]), 2 * length * np.array([math.cos(angle), math.sin(angle)])
        squares = {"dense_square": a @ a, "sparse_square": b @ b, "difference_square": (a - b) @ (a - b)}
        sums = LossSums(positions=1, dense_loss=1, sparse_loss=1, low_positions=0, low_loss=0, low_square=0, **squares)
        assert sums.angle_degrees == pytest.approx(math.degrees(angle), rel=1e-3 if angle == tiny else 1e-8)


def test_sums_over_chunks_are_the_sums_over_all_positions():
    models, next_ids = random_models(4, positions=7)
    scores, spec = cached(models, next_ids, 5), TeacherSpec(gain=7.0)
    whole = compare(models, next_ids, scores, spec, NODES, DIVERGENCES[0])
    parts = [
        compare(
            {role: l_NV[start:stop] for role, l_NV in models.items()},
            next_ids[start:stop], scores.slice(start, stop), spec, NODES, DIVERGENCES[0],
        )
        for start, stop in ((0, 2), (2, 3), (3, 7))
    ]  # fmt: skip
    added = parts[0] + parts[1] + parts[2]
    assert added.stages.keys() == whole.stages.keys() == STAGES.keys()
    for name, sums in whole.stages.items():
        assert added.stages[name].positions == 7
        for field in LossSums.__slots__:
            assert getattr(added.stages[name], field) == pytest.approx(getattr(sums, field), rel=1e-9, abs=1e-15)
    for mine, theirs in ((added.teacher.tail, whole.teacher.tail), (added.teacher.kept, whole.teacher.kept)):
        assert (mine.count, mine.largest) == (theirs.count, theirs.largest)
        assert mine.mean == pytest.approx(theirs.mean)
    assert added.scores.kept["dpo"].count == 7 * 5 and added.scores.next["dpo"].count == 7


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: d.name)
@pytest.mark.parametrize("preset", dense.PRESETS)
def test_with_every_token_kept_angle_deficit_and_errors_are_zero(preset, divergence):
    found = compared(5, V, preset, divergence)
    for sums in found.stages.values():
        assert sums.angle_degrees < 1e-6
        assert abs(sums.deficit) < 1e-12
        assert sums.norm_ratio == pytest.approx(1, abs=1e-12)
    assert found.teacher.kept.largest < 1e-12
    assert found.teacher.tail.largest == 0  # empty on both sides
    assert max(error.largest for error in found.scores.tail.values()) == 0


@pytest.mark.parametrize("preset", dense.PRESETS)
def test_the_deficit_is_never_negative_and_never_grows_with_the_support(preset):
    for seed in range(4):
        before = dict.fromkeys(STAGES, math.inf)
        for kept in (1, 2, 4, 8, 12, 17, V):
            found = compared(seed, kept, preset)
            assert found.teacher.tail.largest < 1e-9, "the strength is no node"
            for name, sums in found.stages.items():
                assert -1e-12 <= sums.deficit <= before[name] + 1e-12
                before[name] = sums.deficit
        assert compared(seed, 2, preset).stages["half way"].deficit > 1e-4


def test_what_is_cached_right_has_no_error_and_each_wrong_value_shows_where_it_stands():
    models, next_ids = random_models(6)
    right = compared(6, 5, "aligndistil").scores
    for kind in ("kept", "next", "tail", "l1_distance"):
        assert max(error.largest for error in getattr(right, kind).values()) < 1e-12
    other = dict(models, reverse=random_models(7)[0]["reverse"])
    wrong = compare(other, next_ids, cached(models, next_ids, 5), TeacherSpec(), NODES, DIVERGENCES[0]).scores
    for kind in ("kept", "next", "tail"):
        errors = getattr(wrong, kind)
        assert errors["reverse"].mean > 0.1 and errors["dpo"].largest < 1e-12 and errors["reference"].largest < 1e-12
    assert wrong.l1_distance["reverse"].mean > 0.01 and wrong.l1_distance["reference"].largest < 1e-12
    expected = (other["reverse"] - models["reverse"]).gather(1, next_ids[:, None]).abs()
    assert wrong.next["reverse"].mean == pytest.approx(float(expected.mean()))
    assert wrong.next["reverse"].largest == pytest.approx(float(expected.max()))


def test_shares_of_positions_with_a_low_strength_are_those_of_the_dense_loss():
    models, next_ids = random_models(8)
    models["reverse"][:2] = models["dpo"][:2]  # D_t = 0 there, w_t = 1e-3
    found = compare(models, next_ids, cached(models, next_ids, 5), TeacherSpec(), NODES, DIVERGENCES[0])
    target, weight = dense.teacher(models, *dense.PRESETS["aligndistil"])
    assert (weight > 10).tolist() == [True, True, False, False, False, False]
    logits = models["reference"].clone().requires_grad_()
    losses = weight * dense.divergence("reverse_kl", logits.log_softmax(-1), target)
    squares, losses = torch.autograd.grad(losses.sum(), logits)[0].square().sum(-1), losses.detach()
    sums = found.stages["at the reference"]
    assert (sums.low_positions, sums.positions) == (2, 6)
    assert sums.low_loss_share == pytest.approx(float(losses[:2].sum() / losses.sum()))
    assert sums.low_gradient_share == pytest.approx(float(squares[:2].sum() / squares.sum()))


def test_where_teacher_and_student_are_one_there_is_no_ratio():
    models, next_ids = random_models(9)
    same = dict.fromkeys(models, models["reference"])
    found = compare(same, next_ids, cached(same, next_ids, V), TeacherSpec.preset("linear"), NODES, DIVERGENCES[0])
    sums = found.stages["at the reference"]
    assert (sums.deficit, sums.angle_degrees, sums.norm_ratio, sums.low_loss_share) == (None, None, None, None)


def test_the_error_of_a_value_is_its_distance_to_the_interval_that_it_should_lie_in():
    lowest, highest = np.array([-3.0, -np.inf, -np.inf, -2.0]), np.array([-2.0, -9.0, -np.inf, -1.0])
    for live, errors in (
        ([-2.5, -50.0, -np.inf, -1.0], [0, 0, 0, 0]),
        ([-3.5, -8.0, -np.inf, -0.9], [0.5, 1, 0, 0.1]),
        ([0.0, -9.0, -700.0, -2.25], [2, 0, np.inf, 0.25]),
    ):
        found = ErrorSum.outside(lowest, highest, torch.tensor(live, dtype=torch.float64))
        assert (found.count, found.largest) == (4, pytest.approx(max(errors)))
        assert found.total == pytest.approx(sum(errors))
    for bad in (np.nan, -1.0), (-1.0, np.nan):
        assert math.isnan(ErrorSum.outside(*(np.array([end]) for end in bad), torch.zeros(1)).mean)
    assert math.isnan(ErrorSum.outside(lowest, highest, torch.full((4,), torch.nan)).largest)


# ---- agreement


def test_a_value_that_is_no_number_is_neither_lost_nor_within_any_tolerance():
    bad = ErrorSum.between(np.array([0.0, np.nan, 0.0]), torch.zeros(3, dtype=torch.float64))
    good = ErrorSum.between(np.zeros(3), torch.zeros(3, dtype=torch.float64))
    for errors in (bad, good + bad, bad + good):
        assert math.isnan(errors.mean) and math.isnan(errors.largest)
        assert OTHER_BFLOAT16.excludes(errors)
    assert not SAME_FLOAT32.excludes(good)
    one_sided = ErrorSum.between(np.array([-np.inf]), torch.zeros(1, dtype=torch.float64))
    assert OTHER_BFLOAT16.excludes(one_sided)


@pytest.mark.parametrize("errors", [{"total": 2e-3, "largest": 2e-4}, {"total": 1e-3, "largest": 2e-3}])
def test_mean_and_largest_both_have_to_be_within_the_tolerance(errors):
    assert not SAME_FLOAT32.excludes(ErrorSum(count=10, total=9e-4, largest=9e-4))
    assert SAME_FLOAT32.excludes(ErrorSum(count=10, **errors))


def test_the_tolerance_follows_dtype_and_numerics():
    others = {
        "float32": (SAME_FLOAT32, OTHER_FLOAT32),
        "tf32": (SAME_TF32, OTHER_TF32),
        "float16": (SAME_FLOAT16, OTHER_FLOAT16),
        "bfloat16": (SAME_BFLOAT16, OTHER_BFLOAT16),
    }
    plain = {"device": "a GPU", "num_threads": 1, "versions": {"torch": "2"}}
    numerics = {name: plain | {"dtype": name} for name in others} | {"tf32": plain | {"dtype": "float32", "tf32": True}}
    for i, (name, (same, other)) in enumerate(others.items()):
        recorded = numerics[name]
        assert tolerance(recorded, dict(recorded)) is same
        assert tolerance(recorded, dict(recorded, num_threads=8)) is same
        for difference in ({"device": "cpu"}, {"versions": {"torch": "3"}}):
            assert tolerance(recorded, recorded | difference) is other
        for finer in list(others)[:i]:  # the coarser of the two decides
            assert tolerance(recorded, numerics[finer]) is tolerance(numerics[finer], recorded) is other
    # the bodies of an older build may have been in bfloat16
    assert tolerance(plain | {"dtype": "auto"}, numerics["float32"]) is OTHER_BFLOAT16


def test_tolerances_follow_the_spacing_of_a_dtype():
    for coarse, fine in ((SAME_BFLOAT16, SAME_FLOAT16), (OTHER_BFLOAT16, OTHER_FLOAT16)):
        assert coarse.mean / fine.mean == coarse.largest / fine.largest == spacing("bfloat16") / spacing("float16") == 8
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert spacing(dtype) == torch.finfo(dtype).eps


def test_disagreements_name_the_role_and_the_kind_of_value():
    models, next_ids = random_models(6)
    other = dict(models, reverse=random_models(7)[0]["reverse"])
    found = compare(other, next_ids, cached(models, next_ids, 5), TeacherSpec(), NODES, DIVERGENCES[0])
    assert disagreements(found.scores, OTHER_BFLOAT16) == [
        "reverse (log-probs of kept tokens, next tokens, tails)",
        "D_t against reverse",
    ]
    assert disagreements(compared(6, 5, "linear").scores, SAME_FLOAT32) == []


def test_files_that_changed_get_no_allowance_for_narrow_bodies():
    scores = compared(6, 5, "linear").scores
    moved = ErrorSum(count=10, total=0.2, largest=0.3)  # between a dpo model and its reference, say
    scores = replace(scores, kept={**scores.kept, "dpo": moved})
    assert disagreements(scores, OTHER_BFLOAT16) == disagreements(scores, OTHER_BFLOAT16, ["reverse"]) == []
    assert disagreements(scores, OTHER_BFLOAT16, ["dpo"]) == ["dpo (log-probs of kept tokens)"]
    distances = replace(scores, kept={}, l1_distance={"reverse": moved, "reference": moved})
    assert disagreements(distances, OTHER_BFLOAT16, ["reverse"]) == ["D_t against reverse"]
    assert disagreements(distances, OTHER_BFLOAT16, ["dpo"]) == ["D_t against reverse", "D_t against reference"]


# ---- the command


def snapshot(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run(capsys, *flags):
    """(exit code, what was printed) of the command."""
    try:
        check_main(list(map(str, flags)))
        code = 0
    except SystemExit as ended:
        code = ended.code
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if len(line) > 100 and "changed since the build:" not in line] == []
    return code, printed


def change_a_weight(folder, size=0.5):
    """Move one number of a model's weights in its file."""
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"][3, 5] += size
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A separate trio and its cache."""
    folder = tmp_path_factory.mktemp("check")
    data = write_jsonl(folder / "pairs.jsonl", make_pairs(8))
    build(build_options(make_trio(folder), data, folder / "cache", top_k=5, max_top_k=12, tokens_per_shard=20))
    return folder


@pytest.fixture
def trio_at(built, tmp_path):
    """role -> a copy of its folder, to be changed."""
    return {
        role: Path(shutil.copytree(built / role, tmp_path / "models" / role))
        for role in ("dpo", "reverse", "reference")
    }


def models_flags(folders):
    return ["--models", *(f"{role}={folder}" for role, folder in folders.items())]


def test_an_untouched_cache_passes_and_stays_as_it_is(built, tmp_path, capsys):
    before = snapshot(built)
    file = tmp_path / "report.json"
    code, printed = run(capsys, "--shards", built / "cache", "--sample", 5, "--json", file)
    assert code == 0
    assert "verdict: the cache agrees with its models" in printed and "5 of 8 responses" in printed
    assert "changed" not in printed
    assert snapshot(built) == before
    report = json.loads(file.read_text())
    assert report["agrees"] is True and report["disagreements"] == [] and len(report["rows"]) == 5
    assert report["positions"] == sum(r.scores.num_positions for r in ShardCache(built / "cache").read(report["rows"]))
    assert report["tolerance"]["largest"] == SAME_FLOAT32.largest
    assert report["errors"]["kept"]["dpo"]["largest"] < 1e-4
    assert set(report["students"]) == set(STAGES)


def test_figures_of_the_command_are_those_of_the_dense_formulas_with_live_models(sparse_cache, trio):
    report = check(CheckOptions(shards=str(sparse_cache.folder), sample=3, gain=7.0, chunk_positions=3, batch_tokens=9))
    responses = sparse_cache.read(report.rows)
    target_losses = []
    for response in responses:
        with torch.no_grad():
            live = {role: dense.response_logprobs(model, response, V).double() for role, model in trio.items()}
        target, weight = dense.teacher(live, *dense.PRESETS["aligndistil"], gain=7.0)
        target_losses.append((weight * dense.divergence("reverse_kl", live["reference"], target)).sum())
    sums = report.comparison.stages["at the reference"]
    assert sums.positions == sum(response.scores.num_positions for response in responses)
    assert sums.dense_loss == pytest.approx(float(sum(target_losses)), rel=1e-3)
    assert 0 < sums.deficit < 1


@pytest.mark.parametrize("role", ROLES)
def test_a_weight_that_changed_under_its_name_is_caught_named_and_seen_in_the_numbers(
    role, built, trio_at, tmp_path, capsys
):
    change_a_weight(trio_at[role])
    file = tmp_path / "report.json"
    code, printed = run(capsys, "--shards", built / "cache", *models_flags(trio_at), "--json", file)
    assert code == 1
    said = [line for line in printed.splitlines() if "changed since the build" in line]
    assert len(said) == 1 and said[0].startswith(f"{role} (") and "weights: expected sha256" in said[0]
    report = json.loads(file.read_text())
    assert [text.split()[0] for text in report["disagreements"] if "log-probs" in text] == [role]
    assert f"  {role} (log-probs of kept tokens, next tokens, tails)" in printed.splitlines()
    for other in set(ROLES) - {role}:
        assert report["errors"]["kept"][other]["largest"] < 1e-4 < report["errors"]["kept"][role]["largest"]
        assert report["models"][other]["changed"] == []


def test_the_numbers_tell_without_the_hashes(built, trio_at, capsys, monkeypatch):
    change_a_weight(trio_at["reverse"])
    monkeypatch.setattr(check_module, "changed_models", lambda *_, **__: {})
    code, printed = run(capsys, "--shards", built / "cache", *models_flags(trio_at))
    assert code == 1
    assert "changed since" not in printed
    assert "  reverse (log-probs of kept tokens, next tokens, tails)" in printed.splitlines()


def test_the_same_weights_in_another_file_are_reported_and_agree(built, trio_at, capsys):
    (trio_at["dpo"] / "model.safetensors").unlink()
    load(built / "dpo").save_pretrained(trio_at["dpo"], max_shard_size="6KB")
    code, printed = run(capsys, "--shards", built / "cache", *models_flags(trio_at))
    assert code == 0
    assert "dpo (" in printed and "weights: expected sha256" in printed
    assert "verdict: the values agree, though dpo changed since the build" in printed


def test_a_model_that_is_not_given_is_taken_from_where_it_lay(built, trio_at, capsys):
    change_a_weight(trio_at["dpo"])
    code, printed = run(capsys, "--shards", built / "cache", "--models", f"dpo={trio_at['dpo']}")
    assert code == 1
    assert "  dpo (log-probs of kept tokens, next tokens, tails)" in printed.splitlines()
    assert run(capsys, "--shards", built / "cache", "--models", f"dpo={built / 'dpo'}")[0] == 0


@pytest.mark.parametrize("preset", dense.PRESETS)
def test_every_preset_can_be_checked_and_loses_nothing_where_every_token_is_kept(preset, whole_cache):
    report = check(CheckOptions(shards=str(whole_cache.folder), sample=4, teacher=preset))
    assert report.agrees and report.spec == TeacherSpec.preset(preset)
    for sums in report.comparison.stages.values():
        assert sums.angle_degrees < 0.05  # what rounding to float32 leaves
        assert abs(sums.deficit) < 1e-3
    assert report.comparison.teacher.tail.largest == 0


def test_a_cache_without_reverse_is_checked_for_what_it_serves(trio_folders, pairs_file, tmp_path, capsys):
    trio = {role: folder for role, folder in trio_folders.items() if role != "reverse"}
    build(build_options(trio, pairs_file, tmp_path / "cache", top_k=5, max_top_k=12))
    capsys.readouterr()
    code, printed = run(capsys, "--shards", tmp_path / "cache", "--teacher", "adaptive")
    head = next(line for line in printed.splitlines() if line.startswith("cache against models"))
    assert code == 0 and head.split()[3:] == ["dpo", "reference"]
    with pytest.raises(AlignDistilError, match="needs the model 'reverse'"):
        check(CheckOptions(shards=str(tmp_path / "cache")))
    with pytest.raises(AlignDistilError, match=r"expected roles of the cache \(dpo, reference\), got reverse"):
        check(CheckOptions(shards=str(tmp_path / "cache"), teacher="adaptive", models=["reverse=x"]))


def test_bf16_bodies_are_checked_as_they_were_built(built, pairs_file, tmp_path):
    trio = {role: built / role for role in ROLES}
    build(build_options(trio, pairs_file, tmp_path / "cache", top_k=5, max_top_k=12, dtype="bfloat16"))
    report = check(CheckOptions(shards=str(tmp_path / "cache")))
    assert report.agrees and report.tolerance is SAME_BFLOAT16 and report.numerics == []
    other = check(CheckOptions(shards=str(tmp_path / "cache"), dtype="float32"))
    assert other.tolerance is OTHER_BFLOAT16
    assert other.numerics == ['dtype: expected "bfloat16", got "float32"']


def test_a_small_change_is_caught_where_rounding_is_as_large(built, trio_at, pairs_file, tmp_path, capsys):
    trio = {role: built / role for role in ROLES}
    build(build_options(trio, pairs_file, tmp_path / "cache", top_k=5, max_top_k=12, dtype="bfloat16"))
    change_a_weight(trio_at["dpo"], size=0.05)
    flags = ["--shards", tmp_path / "cache", "--attn_implementation", "eager"]
    assert run(capsys, *flags)[0] == 0
    code, printed = run(capsys, *flags, *models_flags(trio_at))
    assert code == 1
    assert "mean 0.0001, max 0.001 for dpo, changed since the build" in printed
    assert "  dpo (log-probs of kept tokens, next tokens, tails)" in printed.splitlines()


@pytest.fixture(scope="module")
def built_compact(built):
    """The same models and data as `built`, with compact values."""
    trio = {role: built / role for role in ROLES}
    options = {"values": "compact", "top_k": 5, "max_top_k": 12, "tokens_per_shard": 20}
    build(build_options(trio, built / "pairs.jsonl", built.parent / f"{built.name}-compact", **options))
    return built.parent / f"{built.name}-compact"


def test_the_rounding_of_compact_values_is_no_difference(built_compact, tmp_path, capsys):
    file = tmp_path / "report.json"
    code, printed = run(capsys, "--shards", built_compact, "--json", file)
    assert code == 0 and "verdict: the cache agrees with its models" in printed
    said = "values    compact; differences of log-probs count beyond their rounding, those of the teacher whole"
    assert said in printed.splitlines()
    report = json.loads(file.read_text())
    assert report["values"] == "compact"
    for kind in ("kept", "next", "tail"):
        for role in ROLES:
            assert report["errors"][kind][role]["largest"] < 1e-5
    assert report["errors"]["teacher"]["kept"]["largest"] > 1e-5, "what a student gets has the rounding"


@pytest.mark.parametrize("size", [0.5, 0.02])
@pytest.mark.parametrize("role", ROLES)
def test_a_small_change_of_a_weight_is_caught_with_compact_values(role, size, built_compact, trio_at, capsys):
    change_a_weight(trio_at[role], size=size)
    code, printed = run(capsys, "--shards", built_compact, *models_flags(trio_at))
    assert code == 1
    outside = printed.split("outside of what is allowed:\n")[1].splitlines()
    assert outside[0] == f"  {role} (log-probs of kept tokens, next tokens, tails)"
    assert not [line for line in outside[1:] if "log-probs" in line]


def test_the_sample_is_a_pure_function_of_the_seed():
    assert pick_rows(1000, 20, 3) == pick_rows(1000, 20, 3) != pick_rows(1000, 20, 4)
    assert len(set(pick_rows(1000, 20, 3))) == 20 and pick_rows(1000, 20, 3) == sorted(pick_rows(1000, 20, 3))
    assert pick_rows(7, 20, 3) == list(range(7))
    assert {row for seed in range(200) for row in pick_rows(10, 2, seed)} == set(range(10))


# ---- bad input


def refusal(**settings):
    with pytest.raises(AlignDistilError) as caught:
        check(CheckOptions(**settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_model_of_another_vocabulary_is_refused(built, tmp_path):
    words = [*WORDS[:-1], "owl"]
    folder = save(make_llama(0), tmp_path / "other", make_tokenizer(words))
    message = refusal(shards=str(built / "cache"), models=[f"dpo={folder}"])
    assert "tokenizers of" in message and "'.'" in message
    folders = {role: save(make_llama(0), tmp_path / role, make_tokenizer(words)) for role in ("dpo", "reverse")}
    folders["reference"] = folders["dpo"]  # consistent with each other, but not with the cache
    message = refusal(shards=str(built / "cache"), models=[f"{role}={folder}" for role, folder in folders.items()])
    assert "tokenizers of the cache and the models differ: token '.' has id 17 in the cache and none in" in message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample": 0}, "sample: expected 1 or more, got 0"),
        ({"seed": -1}, "seed: expected 0 or more, got -1"),
        ({"models": ["student=x"]}, "expected role=folder with a role of dpo, reverse, reference, got 'student=x'"),
        ({"models": ["dpo=x", "dpo=y"]}, "models: expected one folder for dpo, got 'x' and 'y'"),
        ({"models": ["dpo=./nowhere"]}, "./nowhere: expected a model folder, found none"),
        ({"gain": 31.0}, "expected a gain of 30 or less, got 31; build another with --gain_nodes that reach it"),
        ({"teacher": "other"}, "teacher: expected one of aligndistil, adaptive, contrastive, linear, got 'other'"),
        ({"json": "nowhere/report.json"}, "json: expected a file to write, got nowhere, which cannot be written to"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_bad_flags_get_one_line(settings, message, built):
    assert refusal(**{"shards": str(built / "cache")} | settings).endswith(message)


def test_the_report_is_never_written_into_the_cache(built):
    file = built / "cache" / "manifest.json"
    assert "json: expected a file outside of the cache" in refusal(shards=str(built / "cache"), json=str(file))


def test_a_cache_that_was_moved_without_its_models_says_what_it_needs(built, tmp_path):
    folder = shutil.copytree(built / "cache", tmp_path / "cache")
    (folder / "provenance.json").write_text(json.dumps({"models": {"dpo": str(tmp_path / "gone")}}))
    assert refusal(shards=str(folder)) == f"models: expected reverse=..., {folder} does not say where it lies"
    (folder / "provenance.json").unlink()
    assert refusal(shards=str(folder)) == f"models: expected dpo=..., {folder} does not say where it lies"
