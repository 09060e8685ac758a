"""Shards of format version 3 that were written once (tests/golden/make.py) still give the same values.

The test compares decoded values, never bytes, because libraries change how they compress.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from fake_cache import flat

from shards import ShardCache, TeacherSpec
from shards.format import schema
from shards.verify.__main__ import verify

GOLDEN = Path(__file__).parent / "golden"
FLOAT32_LOG = {"rtol": 1e-6, "atol": 1e-6}
"""The error of another machine's logarithm. A code that is off by one changes all but the likeliest tokens more."""


def pinned(values):
    return json.loads((GOLDEN / f"{values}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("values", schema.VALUES)
def test_todays_reader_gives_the_values_that_the_first_one_gave(values):
    cache = ShardCache(GOLDEN / values)
    assert cache.plan.values == values
    rows = [flat(row) for row in cache.read(range(len(cache)))]
    for found, expected in zip(rows, pinned(values), strict=True):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            if not isinstance(value, list):
                assert found[name] == value
            elif found[name].dtype.kind != "f":
                np.testing.assert_array_equal(found[name], value, err_msg=name)
            else:
                wanted = np.array([-np.inf if number is None else number for number in value], dtype=np.float32)
                is_log = values == "compact" and name.startswith(("logprobs", "next_logprob"))
                tolerance = FLOAT32_LOG if is_log else {"rtol": 0}
                np.testing.assert_allclose(found[name].ravel(), wanted, err_msg=name, **tolerance)


@pytest.mark.parametrize("values", schema.VALUES)
def test_todays_rules_hold_for_the_first_shards(values):
    assert list(verify(GOLDEN / values)) == []


def test_the_pinned_rows_have_every_kind_of_position():
    rows = pinned("compact")
    counts = [count for row in rows for count in row["support_count"]]
    distances = [distance for row in rows for distance in row["l1_distance reverse"]]
    assert min(counts) == 1 and max(counts) == 24
    assert min(distances) < 0.0125 and max(distances) > 0.1, "the finest unit, and the coarsest"
    assert any(0.05 < distance < 0.1 for distance in distances), "and one between"
    assert None in rows[0]["tail_logprob dpo"]


def test_both_ways_of_storing_give_one_teacher():
    teachers = [ShardCache(GOLDEN / values).teacher([0, 1], TeacherSpec(gain=2.0)) for values in schema.VALUES]
    compact, exact = (np.exp(teacher.logprobs) for teacher in teachers)
    assert np.abs(compact - exact).max() < 1e-3
