"""Whether a cache is good for a teacher: measurements equal the dense formulas, and the verdict follows from them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_cache import make_cache, random_logprobs

from precompute.scoring.support import SupportRule, summarise
from shards import TeacherSpec
from shards.errors import TeacherUnavailable
from shards.format.nodes import StrengthNodes
from shards.format.schema import Pair
from shards.format.scores import Scores, concatenate
from shards.format.statistics import Histogram, LogHistogram
from shards.inspect import __main__ as inspect
from shards.inspect.bars import bars
from shards.spread import spread
from shards.teacher.compose import compose
from shards.teacher.spec import PRESETS
from shards.teacher.trust import LOW_SUPPORT_MASS, STRONG, assess, logprob_bound
from shards.teacher.verdict import finer_nodes, verdict

N, V = 80, 50
PAIRS = (Pair("dpo", "reverse"), Pair("reference", "reference"))
COARSE = StrengthNodes(gains=(0.0, 29.0, 30.0), strengths=(0.0, 3.5, 4.0))
WIDE = SupportRule(lowest=1, highest=V, log_threshold=float(np.log(1e-3)))
NARROW = SupportRule(lowest=1, highest=2, log_threshold=None)
ALL = SupportRule(lowest=V, highest=V, log_threshold=None)


@pytest.fixture(scope="module")
def dense():
    return random_logprobs(np.random.default_rng(2), N, V)


def scores_of(dense, rule, nodes=None):
    logprobs = {role: torch.from_numpy(values) for role, values in dense.items()}
    next_ids = torch.zeros(len(dense["dpo"]), dtype=torch.long)
    return summarise(logprobs, next_ids, rule=rule, pairs=PAIRS, nodes=nodes or StrengthNodes())


def trust_of(scores, spec, nodes=None):
    return assess([scores], spec, nodes or StrengthNodes(), V)


def dense_teacher(dense, spec):
    """log p* (N, V), w and lambda (N,), written out."""
    distance = np.abs(np.exp(dense["dpo"]) - np.exp(dense[spec.negative])).sum(axis=1)
    adaptive = spec.strength == "adaptive"
    w = spec.gain * distance + 1e-3 if adaptive else np.full(len(distance), spec.beta / spec.kl_coef)
    logits = dense[spec.anchor] + w[:, None] * (dense["dpo"] - dense[spec.negative])
    weight = spec.beta / w if adaptive else np.full(len(w), spec.kl_coef)
    return logits - np.logaddexp.reduce(logits, axis=1)[:, None], w, weight


@pytest.mark.parametrize("spec", PRESETS.values(), ids=PRESETS)
def test_with_every_token_kept_coverage_is_one_and_nothing_can_be_off(dense, spec):
    trust = trust_of(scores_of(dense, ALL), spec)
    assert trust.positions == N
    for name in ("coverage_teacher", "coverage_reference"):
        assert trust.histograms[name].lowest == trust.histograms[name].highest == 1
    for name in ("tail_mass", "tail_bound", "logprob_bound"):
        assert trust.histograms[name].highest == 0
    assert trust.thin_share == trust.loose_share == 0
    assert not trust.interval_bound.any()


@pytest.mark.parametrize("spec", PRESETS.values(), ids=PRESETS)
def test_strengths_and_shares_are_those_of_the_dense_formulas(dense, spec):
    teacher, w, weight = dense_teacher(dense, spec)
    loss = weight * (np.exp(dense["reference"]) * (dense["reference"] - teacher)).sum(axis=1)
    trust = trust_of(scores_of(dense, ALL), spec)
    assert trust.mean("strength") == pytest.approx(w.mean())
    assert trust.strong_share == pytest.approx((w > 10).mean())
    assert trust.weak_share == pytest.approx((w < 0.01).mean())
    assert trust.weak_loss_share == pytest.approx(loss[w < 0.01].sum() / loss.sum())


def test_the_share_of_the_loss_at_weak_positions_is_that_of_the_dense_loss(dense):
    spec = TeacherSpec(gain=0.03)
    teacher, w, weight = dense_teacher(dense, spec)
    loss = weight * (np.exp(dense["reference"]) * (dense["reference"] - teacher)).sum(axis=1)
    trust = trust_of(scores_of(dense, ALL), spec)
    assert 0.1 < trust.weak_share < 0.9
    assert trust.weak_loss_share == pytest.approx(loss[w < 0.01].sum() / loss.sum())


@pytest.mark.parametrize("spec", PRESETS.values(), ids=PRESETS)
def test_coverage_is_the_dense_mass_on_the_kept_tokens(dense, spec):
    scores = scores_of(dense, NARROW)
    kept = scores.support_ids.reshape(N, 2)
    mass = {"teacher": dense_teacher(dense, spec)[0], "reference": dense["reference"]}
    mass = {name: np.exp(np.take_along_axis(values, kept, axis=1)).sum(axis=1) for name, values in mass.items()}
    trust = trust_of(scores, spec)
    # at a position between nodes the teacher is interpolated
    assert trust.mean("coverage_teacher") == pytest.approx(mass["teacher"].mean(), abs=0.01)
    assert trust.mean("coverage_reference") == pytest.approx(mass["reference"].mean())
    assert trust.mean("tail_mass") == pytest.approx(1 - trust.mean("coverage_teacher"))
    thin = np.minimum(mass["teacher"], mass["reference"]) < LOW_SUPPORT_MASS
    assert trust.thin_share == pytest.approx(thin.mean(), abs=2 / N)


def test_numbers_of_one_position_worked_out_by_hand():
    # tail at strengths 0, 1, 2, 4: w^2 - 3. At 1.5 the chord is -0.5 and the chord before it reaches -1.5; the cubic
    # is w^2 - 3 itself, -0.75. Kept: one token whose logit is log 0.9 + 1.5 log 0.5.
    nodes = StrengthNodes(gains=(0.0, 1e-6, 2e-6, 3e-6), strengths=(0.0, 1.0, 2.0, 4.0))
    one = {"reference": np.log([0.9]), "dpo": np.log([0.45])}
    scores = Scores(
        support_count=np.array([1]),
        support_ids=np.array([7]),
        logprobs=one,
        next_logprob=one,
        tail_logprob={"reference": np.array([-3.0]), "dpo": np.log([0.55])},
        l1_distance={"reference": np.array([0.5])},
        tail_logpartition={Pair("reference", "reference"): np.array([[-2.0, 1.0, 13.0]])},
    )
    trust = assess([scores], TeacherSpec.preset("linear", beta=0.15, kl_coef=0.1), nodes, V)
    kept, tail = 0.9 * 0.5**1.5, np.exp(-0.75)
    assert trust.mean("strength") == pytest.approx(1.5)
    assert trust.mean("coverage_teacher") == pytest.approx(kept / (kept + tail))
    assert trust.mean("coverage_reference") == pytest.approx(1 - np.exp(-3))
    assert trust.mean("tail_bound") == pytest.approx(1.0)
    assert trust.mean("logprob_bound") == pytest.approx(np.log((kept + tail * np.e) / (kept + tail)))
    assert trust.interval_bound.tolist() == [0, trust.mean("logprob_bound"), 0]
    assert (trust.thin_share, trust.loose_share, trust.strong_share, trust.weak_share) == (1, 1, 0, 0)


@pytest.mark.parametrize("gain", [1.0, 7.0, 12.0, 25.0])
@pytest.mark.parametrize("nodes", [StrengthNodes(), COARSE], ids=["default", "coarse"])
def test_log_probs_are_never_further_off_than_the_bound(dense, gain, nodes):
    spec = TeacherSpec(gain=gain)
    scores = scores_of(dense, NARROW, nodes)
    teacher = compose(scores, spec, nodes)
    truth = np.take_along_axis(dense_teacher(dense, spec)[0], teacher.support_ids.reshape(N, 2), axis=1)
    error = np.abs(truth - teacher.logprobs.reshape(N, 2)).max(axis=1)
    bound = logprob_bound(teacher)
    assert np.all(error <= bound + 1e-9)
    assert error.max() > 1e-3, "a case where it matters"
    assert np.all(bound <= teacher.tail_bound + 1e-12)


def test_a_huge_bound_does_not_overflow(dense):
    teacher = compose(scores_of(dense, NARROW), TeacherSpec(gain=7), StrengthNodes())
    wide = replace(teacher, tail_bound=np.full(N, 1e5))
    np.testing.assert_allclose(logprob_bound(wide), 1e5 + teacher.tail_logprob, rtol=1e-9)


def test_parts_of_any_size_give_the_same_numbers(dense):
    scores, spec = scores_of(dense, WIDE), TeacherSpec(gain=7)
    whole = trust_of(scores, spec)
    parts = assess([scores.slice(n, n + 7) for n in range(0, N, 7)], spec, StrengthNodes(), V)
    for name, histogram in whole.histograms.items():
        np.testing.assert_array_equal(histogram.counts, parts.histograms[name].counts)
        assert histogram.mean == pytest.approx(parts.mean(name))
    for name in ("thin_share", "loose_share", "strong_share", "weak_share", "weak_loss_share"):
        assert getattr(whole, name) == pytest.approx(getattr(parts, name))


# ---- verdict


def test_a_cache_that_keeps_nearly_everything_is_good_at_a_node(dense):
    assert verdict(trust_of(scores_of(dense, WIDE), TeacherSpec(gain=2))) == ("good", ())


def test_a_planted_low_coverage_is_not_good_and_asks_for_more_tokens(dense):
    word, reasons = verdict(trust_of(scores_of(dense, NARROW), TeacherSpec(gain=2)))
    assert word == "not good"
    assert "--top_k" in reasons[0] and "mass, under 0.95" in reasons[0]


def test_a_slightly_low_coverage_is_usable_with_care(dense):
    rule = SupportRule(lowest=1, highest=V, log_threshold=float(np.log(0.016)))
    trust = trust_of(scores_of(dense, rule), TeacherSpec(gain=2))
    assert 0.85 < trust.mean("coverage_reference") < 0.95, "the case is what it says"
    word, (reason,) = verdict(trust)
    assert word == "usable with care"
    assert "--top_k" in reason


def test_planted_coarse_nodes_are_not_good_and_ask_for_a_node_that_helps(dense):
    rule, spec = SupportRule(lowest=1, highest=20, log_threshold=None), TeacherSpec(gain=7)
    trust = trust_of(scores_of(dense, rule, COARSE), spec, COARSE)
    word, reasons = verdict(trust)
    (reason,) = [text for text in reasons if "nat off" in text]
    assert word == "not good"
    assert reason.endswith("--gain_nodes 0 7 29 30 --strength_nodes 0 1.75 3.5 4")
    finer = finer_nodes(trust)
    again = trust_of(scores_of(dense, rule, finer), spec, finer)
    assert again.mean("logprob_bound") < 0.5 * trust.mean("logprob_bound")


def test_a_few_loose_positions_ask_for_care_though_their_mean_is_low(dense):
    trust = trust_of(scores_of(dense, WIDE), TeacherSpec(gain=2))
    word, (reason,) = verdict(replace(trust, loose_share=0.03))
    assert word == "usable with care"
    assert "over 0.01 at 3.0% of the positions: build with --gain_nodes 0 " in reason


def test_a_node_for_a_constant_strength_is_put_at_that_strength(dense):
    spec = TeacherSpec.preset("contrastive", beta=0.75, kl_coef=0.5)
    trust = trust_of(scores_of(dense, NARROW, COARSE), spec, COARSE)
    assert finer_nodes(trust) == StrengthNodes(gains=(0, 14.5, 29, 30), strengths=(0, 1.5, 3.5, 4))


def test_an_extreme_gain_asks_for_a_lower_one(dense):
    trust = trust_of(scores_of(dense, ALL), TeacherSpec(gain=30))
    assert trust.histograms["strength"].highest > STRONG
    word, reasons = verdict(trust)
    assert word in ("usable with care", "not good")
    assert "strength over 10" in reasons[0] and reasons[0].endswith("train with a lower --gain")


def test_a_gain_of_nothing_is_told_by_the_loss_of_weak_positions(dense):
    word, reasons = verdict(trust_of(scores_of(dense, ALL), TeacherSpec(gain=0)))
    assert word == "usable with care"
    assert "carry 100% of the loss" in reasons[0] and reasons[0].endswith("a larger --gain")


def test_a_cap_of_the_weight_lowers_the_loss_of_weak_positions_and_is_named(dense):
    scores = scores_of(dense, ALL)
    distance_N = scores.l1_distance["reverse"]
    gain = 0.009 / float(np.median(distance_N))  # half of the positions are weak
    shares = [trust_of(scores, TeacherSpec(gain=gain, max_weight=cap)).weak_loss_share for cap in (None, 5.0)]
    assert shares[1] < shares[0]
    (reason,) = verdict(trust_of(scores, TeacherSpec(gain=0.0, max_weight=5.0)))[1]
    assert "carry 100% of the loss with weights of no more than 5, more" in reason


def test_the_worst_reason_decides_and_comes_first(dense):
    word, reasons = verdict(trust_of(scores_of(dense, NARROW), TeacherSpec(gain=0)))
    assert word == "not good"
    assert ["--top_k" in reasons[0], "carry 100%" in reasons[-1]] == [True, True]


# ---- histograms and samples


def test_quantiles_over_equal_steps_of_the_logarithm_are_off_by_a_step_at_most():
    values = np.exp(np.random.default_rng(1).normal(-4, 3, 5_000))
    histogram = LogHistogram(1e3, 4_000, low=1e-9)
    histogram.add(values)
    step = (1e3 / 1e-9) ** (1 / 4_000)
    for q in (0.01, 0.5, 0.9):
        assert histogram.quantile(q) == pytest.approx(np.quantile(values, q), rel=2 * (step - 1))
    histogram.add(np.zeros(20_000))
    assert histogram.quantile(0.5) == histogram.lowest == 0


def test_bars_hold_every_value_once():
    histogram = Histogram(1.0, 10_000)
    histogram.add(np.random.default_rng(0).uniform(0.2, 0.7, 1_000))
    counts, edges = bars(histogram, 40)
    assert (len(counts), len(edges), counts.sum()) == (40, 41, 1_000)
    assert (edges[0], edges[-1]) == (pytest.approx(0.2, abs=0.01), pytest.approx(0.7, abs=0.01))
    values = np.random.default_rng(0).uniform(0.2, 0.7, 1_000)
    assert np.abs(counts - np.histogram(values, edges)[0]).max() <= 1  # a value on an edge
    one = Histogram(1.0, 100)
    one.add(np.ones(5))
    assert bars(one, 40)[0].tolist() == [5]


def test_a_sample_is_fixed_and_evenly_spread():
    assert spread(7, 7) == list(range(7))
    rows = spread(1_000, 11)
    assert (rows[0], rows[-1], len(set(rows))) == (0, 999, 11)
    assert max(np.diff(rows)) - min(np.diff(rows)) <= 1


# ---- shards.inspect


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("trust") / "cache")


def shown(capsys, *arguments):
    inspect.main([str(argument) for argument in arguments])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    return text


def test_inspect_measures_the_first_preset_that_is_served(fake, capsys):
    text = shown(capsys, fake.folder)
    trust = assess([concatenate([response.scores for response in fake.responses])], TeacherSpec(), fake.plan.nodes, V)
    word, reasons = verdict(trust)
    assert f"trust        {TeacherSpec()}" in text
    assert f"on all 10 responses, {trust.positions} positions" in text
    (line,) = [line for line in text.splitlines() if line.startswith("coverage_teacher ")]
    assert float(line.split()[1]) == pytest.approx(trust.mean("coverage_teacher"), abs=1e-4)
    assert f"verdict      {word}" in text
    assert len(reasons) == text.partition("verdict")[2].count("- ")


def test_inspect_measures_the_teacher_that_the_flags_name(fake, capsys):
    named = ["--teacher", "linear", "--kl-coef", "0.1", "--beta", "0.2"]
    assert str(TeacherSpec.preset("linear", kl_coef=0.1, beta=0.2)) in shown(capsys, fake.folder, *named)
    fields = ["--anchor", "reference", "--negative", "reference", "--strength", "constant", "--gain", "3"]
    spec = TeacherSpec(anchor="reference", negative="reference", strength="constant", gain=3)
    assert str(spec) in shown(capsys, fake.folder, *fields)
    assert str(TeacherSpec(gain=3)) in shown(capsys, fake.folder, "--gain", "3")
    assert str(TeacherSpec.preset("contrastive", kl_coef=0.1)) in shown(capsys, fake.folder, "--kl_coef", "0.1")
    assert "gain 3" in shown(capsys, fake.folder, "--gain", "3", "--row", "0")


def test_a_gain_decides_which_preset_is_the_first_that_is_served(tmp_path, capsys):
    make_cache(tmp_path, nodes=StrengthNodes(gains=(0.0, 2.0, 5.0), strengths=(0.0, 1.0, 2.0)), pairs=2)
    assert str(PRESETS["contrastive"]) in shown(capsys, tmp_path)
    assert str(TeacherSpec(gain=4)) in shown(capsys, tmp_path, "--gain", "4")


def test_a_teacher_that_is_not_served_is_refused(fake):
    asked = [["--gain", "31"], ["--teacher", "linear", "--kl_coef", "0.01"]]
    for flags in [*asked, ["--teacher", "aligndistil", "--anchor", "reference"]]:
        with pytest.raises(TeacherUnavailable, match="build another with --"):
            inspect.main([str(fake.folder), *flags])


def test_a_large_cache_is_measured_on_a_sample_and_says_so(fake, capsys, monkeypatch):
    monkeypatch.setattr(inspect, "SAMPLE_ROWS", 3)
    text = shown(capsys, fake.folder)
    positions = sum(fake.responses[row].scores.num_positions for row in (0, 4, 9))
    assert f"on 3 of 10 responses, evenly spread, {positions} positions" in text


def test_a_cache_that_serves_no_preset_says_so(tmp_path, capsys):
    make_cache(tmp_path / "cache", roles=("dpo", "reference"), served=[Pair("dpo", "reference")], pairs=1)
    assert "trust        none: the cache serves no preset" in shown(capsys, tmp_path / "cache")
    flags = ["--anchor", "dpo", "--negative", "reference"]
    assert "verdict" in shown(capsys, tmp_path / "cache", *flags)
