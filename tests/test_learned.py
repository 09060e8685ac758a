"""The learned strength: planted numbers are found, the likelihood is correct, and refusals are clear."""

import json
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_cache import make_cache, random_logprobs
from test_training import arguments, plain_sgd, recipe, same_weights

from precompute.scoring.support import SupportRule, summarise
from shards import ShardCache, TeacherSpec
from shards.errors import AlignDistilError, CacheConflict, DataError, OptionError, TeacherUnavailable
from shards.format.nodes import StrengthNodes
from shards.format.schema import Pair
from shards.format.scores import concatenate
from shards.learn.__main__ import judge, main
from shards.preferences.pairs import accuracy, find_pairs, fit, held_out, preference_margins
from shards.preferences.ratio_table import tabulate
from shards.preferences.strength import fit_learned, likelihood, log_sigmoid, margins, region
from shards.teacher.compose import compose
from shards.teacher.spec import PRESETS, learned_strength
from student.data.collate import Collator
from student.data.responses import CachedResponses
from student.options import DistillArguments
from student.runs import learned
from student.train.__main__ import train

V, LENGTH = 12, 6
NODES = StrengthNodes()
PAIR = Pair("reference", "reference")
KEEP_ALL = SupportRule(lowest=V, highest=V, log_threshold=None)
LEARNED = TeacherSpec.preset("adaptive", strength="learned")


def dense_ratios(dense, ids_N, offset, slope):
    """log p*_t(y_t) - l_ref(y_t), (N,): the formulas of the method, written out over the whole vocabulary."""
    distance_N = np.abs(np.exp(dense["dpo"]) - np.exp(dense["reference"])).sum(axis=1)
    strength_N = 1e-3 + np.log1p(np.exp(offset + slope * distance_N))
    strength_N = np.minimum(strength_N, np.maximum(30 * distance_N + 1e-3, 4.0))
    logits_NV = dense["reference"] + strength_N[:, None] * (dense["dpo"] - dense["reference"])
    logprobs_NV = logits_NV - np.logaddexp.reduce(logits_NV, axis=1)[:, None]
    rows = np.arange(len(ids_N))
    return logprobs_NV[rows, ids_N] - dense["reference"][rows, ids_N]


def planted(offset, slope, *, pairs, seed=0):
    """Scores of 2 * pairs responses of LENGTH tokens, and pairs that are Bradley-Terry draws under (offset, slope)."""
    generator = np.random.default_rng(seed)
    count = 2 * pairs * LENGTH
    dense = random_logprobs(generator, count, V)
    ids_N = generator.integers(0, V, count)
    ratio_R = dense_ratios(dense, ids_N, offset, slope).reshape(-1, LENGTH).sum(axis=1)
    first_P, second_P = np.arange(0, 2 * pairs, 2), np.arange(1, 2 * pairs, 2)
    wins_P = generator.random(pairs) < 1 / (1 + np.exp(ratio_R[second_P] - ratio_R[first_P]))
    pairs_P2 = np.where(wins_P[:, None], np.stack([first_P, second_P], 1), np.stack([second_P, first_P], 1))
    logprobs = {role: torch.from_numpy(values) for role, values in dense.items()}
    scores = summarise(logprobs, torch.from_numpy(ids_N), rule=KEEP_ALL, pairs=[PAIR], nodes=NODES)
    return scores, np.full(2 * pairs, LENGTH), pairs_P2, dense, ids_N


@pytest.fixture(scope="module")
def drawn():
    scores, sizes, pairs_P2, _, _ = planted(-0.5, 2.0, pairs=400)
    return tabulate(scores, sizes, PAIR, NODES), pairs_P2


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("fake"), pairs=40)


@pytest.mark.parametrize(("offset", "slope"), [(-0.5, 2.0), (1.0, -1.5), (-2.0, 3.0)])
def test_planted_numbers_are_found_again(offset, slope):
    scores, sizes, pairs_P2, _, _ = planted(offset, slope, pairs=3000, seed=3)
    table = tabulate(scores, sizes, PAIR, NODES)
    found = fit_learned([(table, pairs_P2)], NODES)
    error_2 = np.sqrt(np.diag(np.linalg.inv(-likelihood(table, pairs_P2, *found).hessian)))
    assert error_2.max() < 1, "the preferences say something about both numbers"
    assert np.all(np.abs(np.array(found) - [offset, slope]) < 3 * error_2)


def test_the_fit_is_the_same_to_the_last_bit(fake):
    fits = []
    for _ in range(2):
        cache = ShardCache(fake.folder)
        fits.append(fit([(cache, find_pairs(cache))], LEARNED))
    assert fits[0] == fits[1]
    spec = fits[0].spec
    assert (spec.learned_offset, spec.learned_slope) == (round(spec.learned_offset, 4), round(spec.learned_slope, 4))


def test_gradient_and_hessian_are_those_of_the_likelihood(drawn):
    step = 1e-5
    for offset, slope in [(-0.5, 2.0), (1.3, -3.0), (2.0, 20.0), (-4.0, 9.0)]:
        here = likelihood(*drawn, offset, slope)
        for axis, move in enumerate(([step, 0], [0, step])):
            up, down = (likelihood(*drawn, offset + s * move[0], slope + s * move[1]) for s in (1, -1))
            assert (up.value - down.value) / (2 * step) == pytest.approx(here.gradient[axis], rel=1e-4, abs=1e-4)
            # the cubic's second derivative jumps at a knot, so a step may cross one here and there
            bend_2 = (up.gradient - down.gradient) / (2 * step)
            np.testing.assert_allclose(bend_2, here.hessian[axis], rtol=0.02, atol=1)


def test_the_table_is_exact_at_its_knots_and_close_between_them():
    scores, sizes, pairs_P2, dense, ids_N = planted(0.0, 0.0, pairs=50)
    table = tabulate(scores, sizes, PAIR, NODES)
    assert table.knots.shape[1] == 2 * len(NODES) - 1
    for j in range(table.knots.shape[1]):
        logits_NV = dense["reference"] + table.knots[:, j : j + 1] * (dense["dpo"] - dense["reference"])
        expected_N = logits_NV[np.arange(len(ids_N)), ids_N] - np.logaddexp.reduce(logits_NV, axis=1)
        np.testing.assert_allclose(table.values[:, j], expected_N - dense["reference"][np.arange(len(ids_N)), ids_N],
                                   atol=1e-12)  # fmt: skip
    for offset, slope in [(-0.5, 2.0), (2.0, -1.0), (-3.0, 20.0)]:
        ratio_R = dense_ratios(dense, ids_N, offset, slope).reshape(-1, LENGTH).sum(axis=1)
        found_P = margins(table, pairs_P2, learned_strength(table.distance, offset, slope, table.knots[:, -1]))
        expected_P = ratio_R[pairs_P2[:, 0]] - ratio_R[pairs_P2[:, 1]]
        assert np.abs(found_P - expected_P).mean() < 0.02, "0.15 without the knots half way between the nodes"
        assert likelihood(table, pairs_P2, offset, slope).value == pytest.approx(log_sigmoid(expected_P).sum(), abs=0.1)


def test_no_other_numbers_of_the_region_are_likelier_than_the_fit(drawn, fake):
    cache = ShardCache(fake.folder)
    spec = fit([(cache, find_pairs(cache))], LEARNED).spec
    rows = np.sort(find_pairs(cache).rows, axis=None)
    parts = [response.scores for response in cache.read(rows.tolist())]
    sizes = np.array([part.num_positions for part in parts])
    other = tabulate(concatenate(parts), sizes, PAIR, NODES), np.searchsorted(rows, find_pairs(cache).rows)
    (low_a, low_b), (high_a, high_b) = region(NODES)
    grid = [*product(np.linspace(low_a, high_a, 21), np.linspace(low_b, high_b, 25)), (2.0, 0.0), (-6.0, 10.0)]
    for data, found in ((drawn, fit_learned([drawn], NODES)), (other, (spec.learned_offset, spec.learned_slope))):
        best = likelihood(*data, *found).value
        assert best >= max(likelihood(*data, *point).value for point in grid) - 1e-3


@pytest.mark.parametrize("right", [True, False], ids=["all right", "all wrong"])
def test_preferences_that_any_strength_explains_end_in_the_region(drawn, right):
    table, _ = drawn
    ratio_P = margins(table, np.arange(table.num_responses).reshape(-1, 2), table.knots[:, 2])
    first = np.arange(0, table.num_responses, 2)
    swap = (ratio_P > 0) == (not right)
    pairs_P2 = np.stack([first + swap, first + ~swap], axis=1)
    found = fit_learned([(table, pairs_P2)], NODES)
    low_2, high_2 = region(NODES)
    assert np.all(np.isfinite(found)) and np.all(found >= low_2) and np.all(found <= high_2)
    strength_N = learned_strength(table.distance, *found, table.knots[:, -1])
    if not right:
        assert np.median(strength_N) < 0.01, "the strength that says least is the best one"


def test_pairs_that_no_strength_matters_to_are_refused(drawn):
    table, pairs_P2 = drawn
    flat = replace(table, values=np.zeros_like(table.values), slopes=np.zeros_like(table.slopes))
    with pytest.raises(DataError, match="expected pairs that the strength matters to, got none"):
        fit_learned([(flat, pairs_P2)], NODES)
    with pytest.raises(DataError, match="expected finite log-probs"):
        fit_learned([(replace(table, values=table.values * np.nan), pairs_P2)], NODES)


@pytest.mark.parametrize(("offset", "slope"), [(10.0, 60.0), (-10.0, 60.0), (4.0, -60.0), (-10.0, -60.0)])
def test_a_learned_strength_stays_inside_the_nodes(fake, offset, slope):
    spec = TeacherSpec(strength="learned", learned_offset=offset, learned_slope=slope)
    cache = ShardCache(fake.folder)
    teacher = cache.teacher(range(len(cache)), spec)
    distance_N = np.concatenate([r.scores.l1_distance["reverse"] for r in cache.read(range(len(cache)))])
    assert np.all(teacher.strength >= 1e-3)
    assert np.all(teacher.strength <= NODES.at(distance_N)[:, -1])
    np.testing.assert_array_equal(teacher.weight, spec.beta / teacher.strength)
    assert np.all(np.isfinite(teacher.logprobs))


@pytest.mark.parametrize(("anchor", "negative"), [("dpo", "reverse"), ("reference", "reference")])
def test_with_all_tokens_kept_the_learned_teacher_is_the_dense_formula(anchor, negative):
    dense = random_logprobs(np.random.default_rng(4), 40, V)
    ids_N = torch.arange(40) % V
    logprobs = {role: torch.from_numpy(values) for role, values in dense.items()}
    scores = summarise(logprobs, ids_N, rule=KEEP_ALL, pairs=[Pair(anchor, negative)], nodes=NODES)
    distance_N = np.abs(np.exp(dense["dpo"]) - np.exp(dense[negative])).sum(axis=1)
    for offset, slope in [(-1.0, 4.0), (3.0, 50.0)]:
        spec = TeacherSpec(anchor=anchor, negative=negative, strength="learned", beta=0.2,
                           learned_offset=offset, learned_slope=slope)  # fmt: skip
        teacher = compose(scores, spec, NODES)
        w_N = np.minimum(1e-3 + np.log1p(np.exp(offset + slope * distance_N)), np.maximum(30 * distance_N + 1e-3, 4))
        logits_NV = dense[anchor] + w_N[:, None] * (dense["dpo"] - dense[negative])
        expected_NV = logits_NV - np.logaddexp.reduce(logits_NV, axis=1)[:, None]
        np.testing.assert_allclose(teacher.logprobs.reshape(40, V), expected_NV, atol=1e-9)
        np.testing.assert_allclose(teacher.next_logprob, expected_NV[np.arange(40), ids_N.numpy()], atol=1e-9)
        np.testing.assert_allclose(teacher.weight, 0.2 / w_N, rtol=1e-12)


# ---- the pairs of a cache


def test_a_fitted_strength_keeps_its_min_strength_and_one_beyond_the_nodes_is_refused_before_the_fit(fake):
    cache = ShardCache(fake.folder)
    pairs = find_pairs(cache)
    fitted = fit([(cache, pairs)], replace(LEARNED, min_strength=0.7))
    assert fitted.spec.min_strength == 0.7 and fitted.strength_quantiles[0] >= 0.7
    assert fitted.log_likelihood != fit([(cache, pairs)], LEARNED).log_likelihood
    with pytest.raises(TeacherUnavailable, match="a min_strength of 4 or less of a learned strength, got 5"):
        fit([(cache, pairs)], replace(LEARNED, min_strength=5.0))


def test_pairs_are_the_rows_that_share_a_number(fake):
    pairs = find_pairs(ShardCache(fake.folder))
    assert pairs.pair_id.tolist() == list(range(40))
    assert pairs.rows.tolist() == [[2 * i, 2 * i + 1] for i in range(40)]


def test_a_cache_without_pairs_is_refused(trio_folders, pairs_file, tmp_path):
    from conftest import build_options

    from precompute.build.build import build

    build(build_options(trio_folders, pairs_file, tmp_path / "cache", top_k=5, max_top_k=12))
    message = "cache: expected pairs of a chosen and a rejected response, found none; build with --responses both$"
    with pytest.raises(DataError, match=message):
        main([str(tmp_path / "cache")])
    args = DistillArguments(
        shards=[str(tmp_path / "cache")], output_dir=str(tmp_path / "out"), strength="learned", use_cpu=True
    )
    with pytest.raises(DataError, match=message):
        train(args)
    # numbers that were fitted elsewhere need no pairs
    known = CachedResponses([tmp_path / "cache"]).for_teacher(replace(LEARNED, learned_offset=0.5, learned_slope=1.0))
    assert len(known)


def test_which_pairs_are_held_out_is_a_function_of_their_numbers_alone():
    numbers = np.arange(2000)
    apart = held_out(numbers, 0.2)
    assert 0.17 < apart.mean() < 0.23
    np.testing.assert_array_equal(held_out(numbers[::-3], 0.2), apart[::-3])
    assert np.all(held_out(numbers, 0.4)[apart]), "a larger share keeps those of a smaller one"


def test_margins_of_teachers_are_those_of_the_dense_models(tmp_path):
    fake = make_cache(tmp_path, pairs=8, top_k=24)
    cache = ShardCache(tmp_path)
    found = preference_margins(cache, find_pairs(cache), {"adaptive": PRESETS["adaptive"]})
    expected = {name: [] for name in found}
    for response, dense in zip(fake.responses, fake.dense, strict=True):
        rows, ids = np.arange(response.scores.num_positions), response.input_ids[response.loss_mask]
        w_N = 10 * np.abs(np.exp(dense["dpo"]) - np.exp(dense["reference"])).sum(axis=1) + 1e-3
        logits = dense["reference"] + w_N[:, None] * (dense["dpo"] - dense["reference"])
        logprobs = logits - np.logaddexp.reduce(logits, axis=1)[:, None]
        reference_N = dense["reference"][rows, ids]
        expected["reference"].append(reference_N.sum())
        expected["dpo"].append((dense["dpo"][rows, ids] - reference_N).sum())
        expected["adaptive"].append((logprobs[rows, ids] - reference_N).sum())
    for name, ratios in expected.items():
        np.testing.assert_allclose(found[name], np.array(ratios[::2]) - ratios[1::2], atol=1e-4)


def test_accuracy_counts_a_tie_as_half():
    assert accuracy(np.array([3.0, -1.0, 0.0, 0.5])) == 0.625


# ---- the command


def test_the_command_prints_every_teacher_and_the_same_numbers_as_json(fake, capsys):
    main([str(fake.folder), "--held_out", "0.3"])
    text = capsys.readouterr().out
    main([str(fake.folder), "--held-out", "0.3", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["held_out_pairs"] + report["fit"]["pairs"] == report["fit_on_all"]["pairs"] == 40
    for name in ("reference", "dpo", *PRESETS, "learned"):
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {name} ")]
        numbers = report["held_out"][name]
        assert line.split()[1:] == [f"{numbers['accuracy']:.3f}", f"{numbers['log_likelihood']:.4f}",
                                    f"{numbers['log_likelihood_at_beta']:.4f}"]  # fmt: skip
    assert f"offset {report['fit']['learned_offset']}" in text


def test_held_out_pairs_have_no_part_in_the_fit(fake, tmp_path):
    cache = ShardCache(fake.folder)
    apart = held_out(find_pairs(cache).pair_id, 0.3)
    fitted = judge(fake.folder, LEARNED, 0.3)["fit"]
    assert fitted == fit([(cache, find_pairs(cache).where(~apart))], LEARNED)


def test_a_preset_that_is_not_served_is_said_to_be_so(tmp_path, capsys):
    make_cache(tmp_path, pairs=20, roles=("dpo", "reference"))
    main([str(tmp_path), "--teacher", "adaptive", "--held_out", "0.3"])
    text = capsys.readouterr().out
    assert "aligndistil" in text and "not served: a teacher with anchor dpo, negative reverse" in text
    with pytest.raises(TeacherUnavailable, match="needs the model 'reverse'"):
        main([str(tmp_path)])


@pytest.mark.parametrize("share", ["0", "1", "nan", "-1"])
def test_a_share_that_leaves_one_side_empty_is_refused(fake, share):
    with pytest.raises(OptionError, match="held_out: expected a share that leaves pairs on both sides"):
        main([str(fake.folder), "--held_out", share])


# ---- the spec


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learned_offset": 1.0, "learned_slope": 1.0}, "expected with the strength learned only, got adaptive"),
        ({"strength": "learned", "learned_offset": 1.0}, "learned_slope: expected a finite number .*, got None"),
        ({"strength": "learned", "learned_offset": float("nan"), "learned_slope": 0.0}, "learned_offset: .*got nan"),
    ],
)
def test_numbers_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(OptionError, match=message):
        TeacherSpec(**wrong)


def test_a_learned_teacher_without_its_numbers_is_not_composed(fake):
    with pytest.raises(TeacherUnavailable, match=r"learned strength, beta 0\.1, not fitted needs the two numbers"):
        ShardCache(fake.folder).teacher([0], LEARNED)


# ---- a run


def learned_run(cache, student, out, **overrides):
    return arguments(cache, student, out, strength="learned", **overrides)


@pytest.fixture(scope="module")
def student_folder(trio, tmp_path_factory):
    from tiny import nudged, save

    return save(nudged(trio["reference"], 7, 0.1), tmp_path_factory.mktemp("student"))


def test_a_run_fits_on_all_pairs_and_trains_and_evaluates_with_the_fit(sparse_cache, student_folder, tmp_path, capsys):
    settings = plain_sgd(
        train_on="chosen", global_batch_size=12, per_device_train_batch_size=12, eval_shards=[str(sparse_cache.folder)]
    )
    trainer = train(learned_run(sparse_cache, student_folder, tmp_path, **settings))
    spec = TeacherSpec.preset("aligndistil", strength="learned")
    expected = fit([(sparse_cache, find_pairs(sparse_cache))], spec)
    assert trainer.args.spec == expected.spec
    assert isinstance(trainer.data_collator, Collator) and trainer.data_collator.spec == expected.spec
    assert f"learned strength: {expected}" in capsys.readouterr().out
    chosen = np.flatnonzero(sparse_cache.index.chosen).tolist()
    mean = sparse_cache.teacher(chosen, expected.spec).strength.mean()
    logged = trainer.state.log_history
    assert logged[0]["strength"] == pytest.approx(mean, rel=1e-5)
    assert next(e["eval_strength"] for e in logged if "eval_strength" in e) == pytest.approx(mean, rel=1e-5)
    numbers = f"0.001 + softplus({expected.spec.learned_offset} + {expected.spec.learned_slope} x D_t)"
    assert numbers in (tmp_path / "README.md").read_text()


def test_a_resumed_run_fits_the_same_numbers_and_other_numbers_are_refused(sparse_cache, student_folder, tmp_path):
    settings = recipe(num_train_epochs=1, teacher="adaptive")
    train(learned_run(sparse_cache, student_folder, tmp_path / "a", **settings))
    checkpoint = str(tmp_path / "a" / "checkpoint-2")
    settings["resume_from_checkpoint"] = checkpoint
    train(learned_run(sparse_cache, student_folder, tmp_path / "b", **settings))
    assert same_weights(tmp_path / "a", tmp_path / "b")
    with pytest.raises(CacheConflict, match=r"teacher.learned_offset"):
        numbers = {"learned_offset": 0.25, "learned_slope": 1.0}
        train(learned_run(sparse_cache, student_folder, tmp_path / "c", **settings, **numbers))


def test_a_resumed_run_takes_the_numbers_of_its_checkpoint_without_a_fit(
    sparse_cache, student_folder, tmp_path, monkeypatch
):
    settings = recipe(num_train_epochs=1, max_steps=2, warmup_steps=0)
    first = train(learned_run(sparse_cache, student_folder, tmp_path / "a", **settings))
    monkeypatch.setattr(learned, "fit", lambda *given: pytest.fail("fitted again"))
    settings["resume_from_checkpoint"] = str(tmp_path / "a" / "checkpoint-1")
    again = train(learned_run(sparse_cache, student_folder, tmp_path / "b", **settings))
    assert again.args.spec == first.args.spec and not again.args.spec.needs_fit
    assert same_weights(tmp_path / "a", tmp_path / "b")
    with pytest.raises(CacheConflict, match=r"is of another run, teacher.beta: expected 0.1, got 0.2"):
        train(learned_run(sparse_cache, student_folder, tmp_path / "c", **settings, beta=0.2))


@pytest.mark.parametrize("fault", ["output_dir", "checkpoint", "tokenizer", "model", "pairs", "evaluation"])
def test_what_is_quickly_found_is_found_before_the_fit(
    sparse_cache, whole_cache, student_folder, tmp_path, monkeypatch, fault
):
    monkeypatch.setattr(learned, "fit", lambda *given: pytest.fail("fitted before it was found"))
    folder = Path(shutil.copytree(student_folder, tmp_path / "student"))
    (tmp_path / "checkpoint-1").mkdir()
    wrong, expected = {
        "output_dir": ({"output_dir": str(folder)}, "output_dir: expected another folder than the student's own"),
        "checkpoint": ({"resume_from_checkpoint": str(tmp_path / "checkpoint-1")}, "expected a checkpoint with"),
        "tokenizer": ({}, "tokenizer"),
        "model": ({}, "weights"),
        "pairs": ({"anchor": "reference"}, "needs the pair reference/reverse"),
        "evaluation": ({"eval_shards": [str(whole_cache.folder)]}, "is of another kind than the training cache"),
    }[fault]
    if fault == "tokenizer":
        (folder / "tokenizer.json").unlink()
    if fault == "model":
        (folder / "model.safetensors").unlink()
    with pytest.raises(AlignDistilError, match=expected):
        train(learned_run(sparse_cache, folder, tmp_path / "out", **wrong))
