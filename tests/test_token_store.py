"""Tokenised responses in a file come back unchanged, and take no memory that grows with their tokens."""

import tracemalloc
from dataclasses import fields, replace

import numpy as np
import pytest

from precompute.tokens.token_store import TokenStore
from precompute.tokens.tokenized import TokenizedResponse


def make_row(i, tokens, kind="chosen", **changes):
    generator = np.random.default_rng(i)
    row = TokenizedResponse(
        sample_id=f"{i}/{kind}",
        pair_id=i,
        chosen=kind != "rejected",
        input_ids=generator.integers(0, 2**31 - 1, tokens).astype(np.int32),
        response_start=tokens // 2,
        loss_mask=generator.random(tokens) < 0.5,
        truncated=False,
        prompt_is_prefix=True,
    )
    return replace(row, **changes)


ROWS = [
    make_row(0, 5),
    make_row(0, 7, "rejected", truncated=True),
    make_row(3, 1, "completion", prompt_is_prefix=False),
    make_row(2**40, 4),
    make_row(7, 3, input_ids=np.array([0, 2**31 - 1, 17], dtype=np.int32), loss_mask=np.array([True, True, False])),
]


def require_same(found, expected):
    for field in fields(TokenizedResponse):
        mine, theirs = getattr(found, field.name), getattr(expected, field.name)
        assert type(mine) is type(theirs), field.name
        if isinstance(theirs, np.ndarray):
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)
        else:
            assert mine == theirs, field.name


@pytest.fixture
def store():
    store = TokenStore()
    for row in ROWS:
        store.append(row)
    return store


def test_rows_come_back_as_they_were(store):
    assert len(store) == len(ROWS)
    for found, expected in zip(store, ROWS, strict=True):
        require_same(found, expected)
    require_same(store[-1], ROWS[-1])
    for found, expected in zip(store[1:4], ROWS[1:4], strict=True):
        require_same(found, expected)
    with pytest.raises(IndexError):
        store[len(ROWS)]


def test_a_row_may_be_appended_after_others_were_read(store):
    store.append(make_row(9, 6))
    assert len(store) == 6
    require_same(store[5], make_row(9, 6))
    require_same(store[0], ROWS[0])


def test_memory_does_not_grow_with_tokens():
    tracemalloc.start()
    try:
        store = TokenStore()
        for i in range(100):
            store.append(make_row(i, 20_000))
        total = sum(int(row.loss_mask.sum()) for row in store)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == sum(int(make_row(i, 20_000).loss_mask.sum()) for i in range(100))
    assert held < 50_000 and peak < 1_000_000, "of ten million bytes of ids and masks"
