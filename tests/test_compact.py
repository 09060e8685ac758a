"""Compact values: errors are within docs/format.md for all log-probs; ids and codes are exact."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_cache import make_cache, with_scores

from precompute.scoring.support import SupportRule, summarise
from shards import ShardCache
from shards.errors import OptionError
from shards.format.encoding import codec, compact
from shards.format.encoding.spans import span
from shards.format.nodes import StrengthNodes
from shards.format.schema import ROLES, Pair, arrow_schema
from shards.format.scores import Response, concatenate
from shards.verify.__main__ import verify

DISTANCES = np.array([0.0, 1e-30, 0.012, 0.05, 0.1, 0.7, 2.0], dtype=np.float32)
PAIRS = (Pair("dpo", "reverse"), Pair("reference", "reference"))
LAST_ID = (1 << 24) - 1


def require_stated_error(found, exact, unit):
    """The bounds of docs/format.md on log-probs, plus no more than float32 arithmetic."""
    found, exact, unit = (np.asarray(values, dtype=np.float64) for values in (found, exact, unit))
    none, nearly_none = np.isneginf(exact), exact < -519
    np.testing.assert_array_equal(np.isneginf(found), none)
    assert np.isfinite(found[nearly_none & ~none]).all() and (found[nearly_none] < -519).all()
    probability_off = np.abs(np.exp(found) - np.exp(exact))
    assert (probability_off <= 0.5 * unit + 1e-6 * np.exp(exact))[np.exp(exact) >= 255.5 * unit].all()
    held = ~nearly_none
    assert (np.abs(found[held] - exact[held]) <= 1 / 511 + 1e-6 * np.abs(exact[held])).all()


def there_and_back(logprobs, unit):
    return compact.from_codes(compact.to_codes(logprobs, unit).astype(np.int32), unit)


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_probability_is_off_by_half_a_unit_and_a_log_prob_by_1_of_511(distance):
    (unit,) = compact.units(np.array([distance]))
    around_the_change = np.log(np.linspace(200.0, 300.0, 4_001) * unit)
    denormal = np.log(np.array([5e-324, 1e-310, 1e-45, 1e-38]))
    extremes = [0.0, 1e-6, 1e-5, -np.inf, -518.0, -530.0, float(np.finfo(np.float32).min)]
    logprobs = np.concatenate([-np.geomspace(1e-7, 518, 5_000), around_the_change, denormal, extremes])
    require_stated_error(there_and_back(logprobs, np.repeat(unit, len(logprobs))), logprobs, unit)


@pytest.mark.parametrize("distance", DISTANCES)
def test_likely_tokens_are_nearly_exact(distance):
    logprobs = np.linspace(np.log(1e-3), 0, 1_000)
    unit = np.repeat(compact.units(np.array([distance])), 1_000)
    assert np.abs(there_and_back(logprobs, unit) - logprobs).max() < 0.001


def test_the_unit_is_that_of_the_format_page():
    distances = np.concatenate([DISTANCES, np.geomspace(1e-6, 2, 10_000).astype(np.float32)]).astype(np.float64)
    with np.errstate(divide="ignore"):
        exponent = np.clip(np.floor(np.log2(10 * distances)), -3, 0)
    np.testing.assert_array_equal(compact.units(distances), 2.0 ** (exponent - 20))


@pytest.mark.parametrize("roles", [("dpo", "reverse", "reference"), ("dpo", "reference")])
def test_codes_come_back_from_their_differences(roles):
    generator = np.random.default_rng(0)
    codes = {role: generator.integers(0, (1 << 23) + compact.BIAS, 10_000) for role in roles}
    parts = {role: compact.join(*compact.split(v)) for role, v in compact.to_differences(codes).items()}
    for role, found in compact.from_differences(parts).items():
        np.testing.assert_array_equal(found, codes[role])


def test_ids_come_back_from_their_gaps():
    ids = np.array([5, 9, LAST_ID, 0, 1, 7, 7, LAST_ID - 1, 3, LAST_ID, LAST_ID, 0], dtype=np.int32)
    np.testing.assert_array_equal(compact.from_gaps(compact.join(*compact.split(compact.to_gaps(ids)))), ids)


def test_tails_and_partitions_are_off_by_half_a_step():
    tails = np.array([-np.inf, 0.0, 1e-6, -1e-4, -3.3, -700.0, -4_095.9], dtype=np.float32)
    found = compact.from_tail_codes(compact.to_tail_codes(tails).astype(np.int32))
    assert np.isneginf(found[0]) and np.abs(found[1:] - tails[1:]).max() <= 2**-12
    partitions = np.random.default_rng(1).normal(0, 30, (50, 6))
    partitions[::7] = -np.inf
    empty = np.isneginf(partitions[:, 0])
    found = compact.from_partition_codes(compact.to_partition_codes(partitions, empty), empty)
    np.testing.assert_array_equal(np.isneginf(found), np.isneginf(partitions))
    assert np.abs(found[~empty] - partitions[~empty]).max() <= 2**-12 + 1e-5


# ---- what has no code


REFUSED = {
    "log-probs of 0 or less": [np.nan, 2e-5, 0.1, np.inf],
    "log tail masses from -4,096 to 0 nats": [np.nan, 2e-5, 0.1, np.inf, -4_096.0, -9_000.0],
    "token ids from 0 to 16,777,215": [LAST_ID + 1, -1, 2**31 - 1],
    "finite log partitions of a tail": [np.nan, -np.inf, np.inf],
    "log partitions that differ by under 4,096 nats": [4_096.0, -9_000.0],
    "log partitions of -inf where the tail is empty": [0.0, -3.0, np.nan],
}


def encode_one(expected, value):
    """Encode the value among legal ones, under the name of the message."""
    match expected.split()[:2]:
        case ["log-probs", _]:
            compact.to_codes(np.array([-1.0, value, -np.inf]), np.full(3, 2.0**-20))
        case ["log", "tail"]:
            compact.to_tail_codes(np.array([-1.0, value, -np.inf]))
        case ["token", _]:
            compact.to_gaps(np.array([3, value, 5], dtype=np.int32))
        case _:
            empty = np.array([False, "empty" in expected])
            compact.to_partition_codes(np.array([[-1.0] * 6, [*[-np.inf if empty[1] else -1.0] * 5, value]]), empty)


@pytest.mark.parametrize(("expected", "value"), [(e, v) for e, values in REFUSED.items() for v in values])
def test_a_value_without_a_code_is_refused_in_one_line(expected, value):
    with pytest.raises(OptionError) as caught:
        encode_one(expected, value)
    assert str(caught.value) == f"values: expected {expected}, got {value:,.9g}; build with --values float32"


FIELDS = {"logprobs": "log-probs", "next_logprob": "log-probs", "tail_logprob": "log tail", "tail_logpartition": "log"}


@pytest.mark.parametrize("field", FIELDS)
def test_no_column_lets_a_value_without_a_code_through(tmp_path, field):
    fake = make_cache(tmp_path, pairs=1, values="compact", top_k=5)
    (response, *_), schema = fake.responses, arrow_schema(fake.plan.columns(), build_sha256=fake.plan.sha256)
    for key, values in getattr(response.scores, field).items():
        wrong = values.copy()
        wrong.flat[-1] = np.nan
        changed = with_scores(response, **{field: {**getattr(response.scores, field), key: wrong}})
        with pytest.raises(
            OptionError, match=f"^{response.sample_id}: values: expected .*{FIELDS[field]}.*, got nan; build with"
        ):
            codec.encode([changed], fake.plan, schema)


# ---- hostile rows, from dense log-probs through the columns and back


def sharp(logits_NV):
    """One token with all the mass: all other probabilities are denormal numbers, or zero in float32."""
    logits_NV[:, 3] += np.linspace(90, 800, len(logits_NV))


HOSTILE = {
    "random": lambda logits_NV: None,
    "equal probabilities": lambda logits_NV: logits_NV.fill(0.0),
    "one token with all the mass": sharp,
    "one token without any": lambda logits_NV: logits_NV[:, 3].fill(-4_000.0),
    "two tokens share all": lambda logits_NV: logits_NV[:, 5:7].__iadd__(300.0),
}


def hostile_scores(name, rule, size=40, positions=12):
    generator = np.random.default_rng(7)
    base = generator.normal(0, 2, (positions, size))
    scale = np.geomspace(1e-6, 2, positions)[:, None]  # of the models' differences, so that units differ
    logits = {role: base + scale * generator.normal(0, 1, base.shape) for role in ROLES}
    for logits_NV in logits.values():
        HOSTILE[name](logits_NV)
    logprobs = {role: torch.from_numpy(logits_NV).float().log_softmax(-1) for role, logits_NV in logits.items()}
    return summarise(logprobs, torch.arange(positions) % size, rule=rule, pairs=PAIRS, nodes=StrengthNodes())


def row_of(scores):
    return Response(
        sample_id="0/chosen",
        pair_id=0,
        chosen=True,
        response_start=1,
        input_ids=np.zeros(scores.num_positions + 1, dtype=np.int32),
        loss_mask=np.arange(scores.num_positions + 1) > 0,
        scores=scores,
    )


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    plan = make_cache(tmp_path_factory.mktemp("plan"), pairs=1, values="compact").plan
    return replace(plan, vocabulary_size=LAST_ID + 1)


def stored(scores, plan):
    """The scores after encoding and decoding compact values."""
    batch = codec.encode([row_of(scores)], plan, arrow_schema(plan.columns(), build_sha256=plan.sha256))
    (found,) = codec.decode(batch, plan)
    return found.scores


RULES = {
    "ragged": SupportRule(lowest=1, highest=40, log_threshold=-3.5),
    "K = 1": SupportRule(lowest=1, highest=1, log_threshold=None),
    "K = 7": SupportRule(lowest=7, highest=7, log_threshold=None),
    "K = V": SupportRule(lowest=40, highest=40, log_threshold=None),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", HOSTILE)
def test_the_stated_errors_hold_for_hostile_rows(name, rule, plan):
    exact = hostile_scores(name, RULES[rule])
    top = LAST_ID - 39  # the same tokens at the top of the largest vocabulary
    for scores in (exact, replace(exact, support_ids=exact.support_ids + np.int32(top))):
        found = stored(scores, plan)
        np.testing.assert_array_equal(found.support_count, scores.support_count)
        np.testing.assert_array_equal(found.support_ids, scores.support_ids)
        unit_N = compact.units(scores.l1_distance["reverse"])
        for role in ROLES:
            unit_M = np.repeat(unit_N, scores.support_count)
            require_stated_error(found.logprobs[role], scores.logprobs[role], unit_M)
            require_stated_error(found.next_logprob[role], scores.next_logprob[role], unit_N)
            require_near(found.tail_logprob[role], scores.tail_logprob[role])
        for negative, distance in scores.l1_distance.items():
            np.testing.assert_array_equal(found.l1_distance[negative], distance)
        for pair, partition in scores.tail_logpartition.items():
            require_near(found.tail_logpartition[pair], partition)


def require_near(found, exact):
    """Half a step of 2^-11 nat, plus float32's own rounding."""
    np.testing.assert_array_equal(np.isneginf(found), np.isneginf(exact))
    some = ~np.isneginf(exact)
    assert (np.abs(found[some] - exact[some].astype(np.float64)) <= 2**-12 + 2e-7 * np.abs(exact[some])).all()


def test_a_support_of_one_token_between_larger_ones_comes_back(plan):
    wide, one = (hostile_scores("random", RULES[name]) for name in ("K = V", "K = 1"))
    for first, second in ((wide, one), (one, wide)):
        joined = concatenate([first.slice(0, 1), second.slice(1, 2), first.slice(2, 3)])
        found = stored(joined, plan)
        np.testing.assert_array_equal(found.support_ids, joined.support_ids)
        unit_M = np.repeat(compact.units(joined.l1_distance["reverse"]), joined.support_count)
        for role in ROLES:
            require_stated_error(found.logprobs[role], joined.logprobs[role], unit_M)
            require_near(found.tail_logprob[role], joined.tail_logprob[role])


# ---- spans


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", HOSTILE)
def test_the_span_of_what_was_stored_holds_what_went_in(name, rule, plan):
    exact = hostile_scores(name, RULES[rule])
    low, high = span(stored(exact, plan), plan)
    for field in ("logprobs", "next_logprob", "tail_logprob", "l1_distance", "tail_logpartition"):
        for key, values in getattr(exact, field).items():
            slack = 1e-6 * np.abs(np.nan_to_num(values, neginf=0)) + 1e-6
            assert (getattr(low, field)[key] <= values + slack).all()
            assert (values - slack <= getattr(high, field)[key]).all()


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_span_ends_where_the_neighbouring_codes_begin(distance, plan):
    zero, change = compact.BIAS, compact.LINEAR_FROM
    codes = np.concatenate([[1, 2, 3], zero + np.arange(-300, 600), zero + np.geomspace(600, 20_000, 50).astype(int)])
    unit = np.repeat(compact.units(np.array([distance])), len(codes))
    decoded = compact.from_codes(codes.astype(np.int32), unit)
    position = hostile_scores("random", RULES["K = 1"]).slice(0, 1)
    distances = {"reverse": np.array([distance])}
    count = np.array([len(codes)])
    scores = replace(position, support_count=count, logprobs={"dpo": decoded}, l1_distance=distances)
    lowest, highest = (end.logprobs["dpo"] for end in span(scores, plan))
    assert np.isneginf(lowest[codes == 1]).all() and np.isfinite(lowest[codes > 1]).all()
    one = np.where(codes >= zero + change, 1 / np.maximum(codes - zero, 1), 1 / compact.STEPS_PER_NAT)  # nats
    step = one / 50
    for edge, inwards, some in ((lowest, 1, codes > 1), (highest, -1, codes > 0)):
        inside, beyond = edge + inwards * step, edge - inwards * step
        np.testing.assert_array_equal(compact.to_codes(inside[some], unit[some]), codes[some])
        np.testing.assert_array_equal(compact.to_codes(beyond[some], unit[some]), codes[some] - inwards)


def test_float32_values_stand_for_themselves(plan):
    scores = hostile_scores("random", RULES["ragged"])
    assert span(scores, replace(plan, values="float32")) == (scores, scores)


# ---- whole caches


@pytest.mark.parametrize("top_k", [None, 1, 24])
def test_a_compact_cache_holds_every_rule_and_is_near_the_exact_one(tmp_path, top_k):
    exact = make_cache(tmp_path / "exact", top_k=top_k)
    make_cache(tmp_path / "compact", top_k=top_k, values="compact")
    assert list(verify(tmp_path / "compact")) == []
    for row, found in zip(exact.responses, ShardCache(tmp_path / "compact").read(range(10)), strict=True):
        np.testing.assert_array_equal(found.scores.support_ids, row.scores.support_ids)
        for role, values in row.scores.logprobs.items():
            assert np.abs(np.exp(found.scores.logprobs[role]) - np.exp(values)).max() < 2**-20
