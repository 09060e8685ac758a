"""Compact values: off by no more than docs/format.md says, whatever the log-probs; ids and codes come back exactly."""

import numpy as np
import pytest
from fake_cache import make_cache

from shards import ShardCache, compact
from shards.errors import OptionError
from shards.verify import verify

DISTANCES = np.array([0.0, 1e-30, 0.012, 0.05, 0.1, 0.7, 2.0], dtype=np.float32)


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_probability_is_off_by_half_a_unit_or_a_log_prob_by_an_eighth(distance):
    logprobs = np.concatenate([-np.geomspace(1e-7, 7_000, 5_000), [0.0, 1e-6, np.log(1e-3)]])
    unit = np.repeat(compact.units(np.array([distance])), len(logprobs))
    found = compact.from_codes(compact.to_codes(logprobs, unit).astype(np.int32), unit).astype(np.float64)
    by_probability = np.abs(np.exp(found) - np.exp(logprobs)) <= 0.5 * unit + 2e-7
    by_logprob = np.abs(found - logprobs) <= 0.125 + 1e-3
    linear = np.exp(logprobs) >= 4.5 * unit
    assert by_probability[linear].all()
    assert (by_probability | by_logprob).all()
    assert np.abs(found - logprobs)[logprobs > np.log(1e-3)].max() < 0.01


def test_no_mass_stays_none_and_nearly_none_stays_finite():
    unit = np.full(3, compact.units(np.array([1.0]))[0])
    codes = compact.to_codes(np.array([-np.inf, -9_000.0, float(np.finfo(np.float32).min)]), unit)
    found = compact.from_codes(codes.astype(np.int32), unit)
    assert np.isneginf(found[0]) and np.isfinite(found[1:]).all() and (found[1:] < -8_000).all()


@pytest.mark.parametrize("roles", [("dpo", "reverse", "reference"), ("dpo", "reference")])
def test_codes_come_back_from_their_differences(roles):
    generator = np.random.default_rng(0)
    codes = {role: generator.integers(0, (1 << 23) + (1 << 15), 10_000) for role in roles}
    parts = {role: compact.join(*compact.split(v)) for role, v in compact.to_differences(codes).items()}
    for role, found in compact.from_differences(parts).items():
        np.testing.assert_array_equal(found, codes[role])


def test_ids_come_back_from_their_gaps():
    ids = np.array([5, 9, (1 << 24) - 1, 0, 1, 7, 7, (1 << 24) - 2, 3], dtype=np.int32)
    np.testing.assert_array_equal(compact.from_gaps(compact.join(*compact.split(compact.to_gaps(ids)))), ids)


def test_tails_and_partitions_are_off_by_half_a_step():
    tails = np.array([-np.inf, 0.0, -1e-4, -3.3, -700.0], dtype=np.float32)
    found = compact.from_tail_codes(compact.to_tail_codes(tails).astype(np.int32))
    assert np.isneginf(found[0]) and np.abs(found[1:] - tails[1:]).max() <= 2**-12 + 1e-4
    partitions = np.random.default_rng(1).normal(0, 30, (50, 6))
    found = compact.from_partition_codes(compact.to_partition_codes(partitions), np.zeros(50, bool))
    assert np.abs(found - partitions).max() <= 2**-12 + 1e-5


def test_a_partition_too_large_is_refused():
    with pytest.raises(OptionError, match="4,096 nats, got 9,000; build with --values float32"):
        compact.to_partition_codes(np.full((1, 6), 9_000.0))


@pytest.mark.parametrize("top_k", [None, 1, 24])
def test_a_compact_cache_holds_every_rule_and_is_near_the_exact_one(tmp_path, top_k):
    exact = make_cache(tmp_path / "exact", top_k=top_k)
    make_cache(tmp_path / "compact", top_k=top_k, values="compact")
    assert list(verify(tmp_path / "compact")) == []
    for row, found in zip(exact.responses, ShardCache(tmp_path / "compact").read(range(10)), strict=True):
        np.testing.assert_array_equal(found.scores.support_ids, row.scores.support_ids)
        for role, values in row.scores.logprobs.items():
            assert np.abs(np.exp(found.scores.logprobs[role]) - np.exp(values)).max() < 2**-20
