"""The composed teacher is the dense formula: exactly if all tokens are kept or at a node, else within its bound."""

from itertools import product

import numpy as np
import pytest
import torch
from fake_cache import make_cache, random_logprobs

from precompute.scoring.support import SupportRule, summarise
from shards import ShardCache, TeacherSpec
from shards.errors import TeacherUnavailable
from shards.format.nodes import StrengthNodes
from shards.format.schema import ANCHORS, NEGATIVES, Pair
from shards.format.scores import concatenate
from shards.teacher.compose import compose
from shards.teacher.spec import PRESETS

N, V = 60, 50
ALL_PAIRS = tuple(Pair(anchor, negative) for anchor in ANCHORS for negative in NEGATIVES)
KEEP_ALL = SupportRule(lowest=V, highest=V, log_threshold=None)
KEEP_SOME = SupportRule(lowest=1, highest=30, log_threshold=float(np.log(0.01)))
CONSTANT_NODES = StrengthNodes(gains=(0.0, 1e-6, 2e-6, 3e-6), strengths=(0.0, 1.0, 2.0, 4.0))
"""At every position the nodes are 0, 1, 2 and 4."""
ADAPTIVE_NODES = StrengthNodes(gains=(0.0, 5.0, 10.0, 20.0), strengths=(0.0, 0.001, 0.0010001, 0.0010002))
"""At every position whose D_t is not tiny the nodes are those of gains 5, 10 and 20."""
SPECS = [
    *PRESETS.values(),
    *(
        TeacherSpec(anchor=anchor, negative=negative, strength=how, beta=beta, gain=gain)
        for (anchor, negative), how, (beta, gain) in product(
            ALL_PAIRS, ("adaptive", "constant"), [(0.1, 0.0), (0.07, 3.3), (0.2, 30.0)]
        )
    ),
]


def dense_teacher(dense, spec):
    """log p* (N, V), w (N,), lambda (N,): the formulas of the method, written out over the whole vocabulary."""
    dpo_NV, negative_NV = dense["dpo"], dense[spec.negative]
    distance_N = np.abs(np.exp(dpo_NV) - np.exp(negative_NV)).sum(axis=1)
    if spec.strength == "adaptive":
        strength_N = spec.gain * distance_N + 1e-3
        weight_N = spec.beta / strength_N
    else:
        strength_N = np.full(len(dpo_NV), spec.beta / spec.kl_coef)
        weight_N = np.full(len(dpo_NV), spec.kl_coef)
    logits_NV = dense[spec.anchor] + strength_N[:, None] * (dpo_NV - negative_NV)
    return logits_NV - np.logaddexp.reduce(logits_NV, axis=1)[:, None], strength_N, weight_N


@pytest.fixture(scope="module")
def dense():
    return random_logprobs(np.random.default_rng(2), N, V)


def scores_of(dense, rule, nodes):
    logprobs = {role: torch.from_numpy(values) for role, values in dense.items()}
    next_ids = torch.zeros(N, dtype=torch.long)
    return summarise(logprobs, next_ids, rule=rule, pairs=ALL_PAIRS, nodes=nodes)


@pytest.fixture(scope="module")
def whole(dense):
    return scores_of(dense, KEEP_ALL, StrengthNodes())


@pytest.fixture(scope="module")
def ragged(dense):
    return scores_of(dense, KEEP_SOME, StrengthNodes())


@pytest.fixture(scope="module")
def ragged_float32(dense):
    """The values as a reader gets them: float32, and the last position with nothing outside its support."""
    stored = {role: values.astype(np.float32) for role, values in dense.items()}
    some, last = scores_of(stored, KEEP_SOME, StrengthNodes()), scores_of(stored, KEEP_ALL, StrengthNodes())
    return concatenate([some.slice(0, N - 1), last.slice(N - 1, N)])


def positions(scores):
    return np.repeat(np.arange(scores.num_positions), scores.support_count)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_with_all_tokens_kept_the_teacher_is_the_dense_softmax(dense, whole, spec):
    teacher = compose(whole, spec, StrengthNodes())
    expected_NV, strength_N, weight_N = dense_teacher(dense, spec)
    np.testing.assert_allclose(teacher.logprobs.reshape(N, V), expected_NV, atol=1e-12, rtol=1e-12)
    np.testing.assert_allclose(teacher.strength, strength_N, rtol=1e-13)
    np.testing.assert_allclose(teacher.weight, weight_N, rtol=1e-13)
    assert np.all(np.isneginf(teacher.tail_logprob))
    assert np.all(teacher.tail_bound == 0)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_kept_tokens_and_tail_have_a_mass_of_one(ragged_float32, spec):
    teacher = compose(ragged_float32, spec, StrengthNodes())
    mass_N = np.bincount(positions(ragged_float32), np.exp(teacher.logprobs)) + np.exp(teacher.tail_logprob)
    np.testing.assert_allclose(mass_N, 1, atol=1e-12)
    assert np.isneginf(teacher.tail_logprob[-1])
    assert np.all(np.isfinite(teacher.tail_logprob[:-1]))


@pytest.mark.parametrize(
    ("spec", "nodes"),
    [
        (TeacherSpec.preset(name, beta=beta, kl_coef=0.05), CONSTANT_NODES)
        for name in ("contrastive", "linear")
        for beta in (0.05, 0.1, 0.2)
    ]
    + [
        (TeacherSpec.preset(name, gain=gain), ADAPTIVE_NODES)
        for name in ("aligndistil", "adaptive")
        for gain in (5.0, 10.0, 20.0)
    ],
    ids=str,
)
def test_at_a_node_the_teacher_is_the_dense_one_on_the_support_and_in_the_tail(dense, spec, nodes):
    scores = scores_of(dense, KEEP_SOME, nodes)
    at_node_N = np.any(nodes.at(scores.l1_distance[spec.negative]) == dense_strength(scores, spec)[:, None], axis=1)
    assert at_node_N.all()
    teacher = compose(scores, spec, nodes)
    expected_NV = dense_teacher(dense, spec)[0]
    np.testing.assert_allclose(
        teacher.logprobs, expected_NV[positions(scores), scores.support_ids], atol=1e-9, rtol=1e-9
    )
    outside_NV = expected_NV.copy()
    outside_NV[positions(scores), scores.support_ids] = -np.inf
    np.testing.assert_allclose(teacher.tail_logprob, np.logaddexp.reduce(outside_NV, axis=1), atol=1e-9, rtol=1e-9)
    assert np.all(teacher.tail_bound == 0)


def dense_strength(scores, spec):
    if spec.strength == "constant":
        return np.full(N, spec.beta / spec.kl_coef)
    return spec.gain * scores.l1_distance[spec.negative] + 1e-3


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_between_nodes_the_tail_is_off_by_no_more_than_its_bound(dense, ragged, spec):
    teacher = compose(ragged, spec, StrengthNodes())
    logits_NV = dense[spec.anchor] + teacher.strength[:, None] * (dense["dpo"] - dense[spec.negative])
    starts_N = np.cumsum(ragged.support_count) - ragged.support_count
    first_N = logits_NV[np.arange(N), ragged.support_ids[starts_N]]
    found_N = teacher.tail_logprob - teacher.logprobs[starts_N] + first_N
    outside_NV = logits_NV.copy()
    outside_NV[positions(ragged), ragged.support_ids] = -np.inf
    assert np.all(np.abs(found_N - np.logaddexp.reduce(outside_NV, axis=1)) <= teacher.tail_bound + 1e-9)


def test_positions_do_not_touch_each_other(ragged):
    spec = TeacherSpec()
    whole = compose(ragged, spec, StrengthNodes())
    parts = [compose(ragged.slice(n, n + 1), spec, StrengthNodes()) for n in range(N)]
    for name in ("logprobs", "tail_logprob", "strength", "weight", "tail_bound"):
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))


def test_a_cache_gives_the_teacher_of_its_rows_in_the_order_asked_for(tmp_path):
    fake = make_cache(tmp_path)
    rows = [7, 0, 3]
    teacher = ShardCache(tmp_path).teacher(rows, TeacherSpec())
    expected = compose(concatenate([fake.responses[row].scores for row in rows]), TeacherSpec(), fake.plan.nodes)
    for name in ("support_count", "support_ids", "logprobs", "tail_logprob", "strength", "weight"):
        np.testing.assert_array_equal(getattr(teacher, name), getattr(expected, name))


def test_a_cached_teacher_is_the_dense_one_up_to_float32(tmp_path):
    fake = make_cache(tmp_path, top_k=24)
    for name in PRESETS:
        teacher = ShardCache(tmp_path).teacher([4], TeacherSpec.preset(name))
        expected_NV = dense_teacher(fake.dense[4], TeacherSpec.preset(name))[0]
        np.testing.assert_allclose(teacher.logprobs, expected_NV.ravel(), atol=1e-4)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"gain": 31.0}, "expected a gain of 30 or less, got 31; build another with --gain_nodes that reach it$"),
        (
            {"strength": "constant", "beta": 0.3},
            "a strength beta / kl_coef of 4 or less, got 6; build another with --strength_nodes that reach it$",
        ),
        (
            {"min_strength": 2.7},
            "a min_strength of 2.667 or less with gain 10, got 2.7; build another with --gain_nodes and --strength_nod",
        ),
        ({"min_strength": 0.0011, "gain": 30.0}, "a min_strength of 0.001 or less with gain 30, got 0.0011; build"),
        (
            {"strength": "learned", "learned_offset": 0.0, "learned_slope": 0.0, "min_strength": 4.5},
            "a min_strength of 4 or less of a learned strength, got 4.5; build another with --strength_nodes that",
        ),
        ({"anchor": "reference"}, "needs the pair reference/reverse.*build another with --pairs .* reference/reverse$"),
    ],
)
def test_a_teacher_that_the_cache_cannot_give_is_refused_with_what_is_missing(tmp_path, wanted, message):
    make_cache(tmp_path)
    with pytest.raises(TeacherUnavailable, match=message):
        ShardCache(tmp_path).teacher([0], TeacherSpec(**wanted))


def test_without_the_reverse_model_contrast_is_refused_and_the_other_presets_are_served(tmp_path):
    make_cache(tmp_path, roles=("dpo", "reference"))
    cache = ShardCache(tmp_path)
    for name in ("adaptive", "linear"):
        cache.teacher([0], TeacherSpec.preset(name))
    for name in ("aligndistil", "contrastive"):
        with pytest.raises(TeacherUnavailable, match="needs the model 'reverse', the cache was built with dpo, ref"):
            cache.check(TeacherSpec.preset(name))
