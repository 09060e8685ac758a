"""The order of training: a function of seed, epoch, global batch size and shuffle window, on any ranks."""

import itertools

import numpy as np
import pytest

from student.data.order import GlobalBatchSampler, Window, _row_type, by_length, shuffled

ENDS = np.cumsum(np.random.default_rng(0).integers(1, 12, 40))
ROWS = int(ENDS[-1])
LENGTHS = np.random.default_rng(1).integers(3, 40, ROWS).astype(np.int32)
WIDTHS = [None, 1, 2, 7, 39, 40, 1000]


def window(width):
    return None if width is None else Window(width=width, ends=ENDS)


def sampler(width, *, micro=2, accumulation=4, world=1, rank=0, **kwargs):
    return GlobalBatchSampler(
        LENGTHS,
        **{"seed": 3, "micro_batch_size": micro, "accumulation_steps": accumulation, "world_size": world, **kwargs},
        rank=rank,
        window=window(width),
    )


def shard_of(rows):
    return np.searchsorted(ENDS, rows, side="right")


def test_without_a_window_and_with_one_of_all_shards_the_order_is_the_one_of_earlier_versions():
    golden = [2, 4, 6, 21, 5, 19, 16, 20, 14, 7, 9, 12, 8, 18, 10, 15, 23, 11, 13, 0, 1, 22, 3, 17]
    assert shuffled(24, seed=5, epoch=1).tolist() == golden
    assert shuffled(24, seed=5, epoch=1, window=Window(width=9, ends=np.arange(3, 25, 3))).tolist() == golden
    made = GlobalBatchSampler(
        np.arange(24)[::-1] % 5 + 3, seed=5, micro_batch_size=2, accumulation_steps=2, world_size=2, rank=1
    )
    made.set_epoch(1)
    assert [[item.row for item in items] for items in made] == [[19, 20], [21, 2], [9, 15], [12, 18], [11, 22], [23, 3]]
    for epoch in range(3):
        every = np.random.default_rng([3, epoch]).permutation(ROWS)
        for width in (None, 40, 1000):
            assert (shuffled(ROWS, seed=3, epoch=epoch, window=window(width)) == every).all()


def test_the_order_inside_a_window_is_pinned():
    ends = np.array([4, 10, 11, 16, 20, 24])
    found = shuffled(24, seed=5, epoch=1, window=Window(width=2, ends=ends)).tolist()
    assert found == [4, 9, 5, 23, 7, 8, 6, 22, 20, 21, 3, 2, 18, 1, 0, 17, 16, 19, 13, 14, 15, 11, 12, 10]


@pytest.mark.parametrize("width", WIDTHS)
def test_every_row_comes_once_and_the_order_is_a_function_of_seed_epoch_and_window(width):
    found = shuffled(ROWS, seed=3, epoch=0, window=window(width))
    assert sorted(found.tolist()) == list(range(ROWS))
    assert (found == shuffled(ROWS, seed=3, epoch=0, window=window(width))).all()
    for seed, epoch in ((3, 1), (4, 0)):
        assert (found != shuffled(ROWS, seed=seed, epoch=epoch, window=window(width))).any()
    assert width in (None, 40, 1000) or (found != shuffled(ROWS, seed=3, epoch=0)).any()


@pytest.mark.parametrize("width", [1, 2, 7, 20, 39])
def test_rows_stay_inside_the_window_of_their_shard(width):
    for epoch in range(20):
        shards = shard_of(shuffled(ROWS, seed=3, epoch=epoch, window=window(width)))
        first = np.array([np.flatnonzero(shards == s)[0] for s in range(len(ENDS))])
        last = np.array([np.flatnonzero(shards == s)[-1] for s in range(len(ENDS))])
        begun = [np.count_nonzero((first <= at) & (at <= last)) for at in range(ROWS)]
        assert max(begun) <= width + 1, "shards that are begun and not finished"


def test_rows_of_a_shard_spread_evenly_over_the_window_also_at_the_ends():
    ends = np.arange(50, 50 * 201, 50)
    rows = shuffled(10_000, seed=0, epoch=0, window=Window(width=40, ends=ends))
    shards = np.searchsorted(ends, rows, side="right")
    at = [np.flatnonzero(shards == s) / 50 for s in range(200)]  # places in shards
    spread = np.array([place.std() for place in at])
    middle = np.array([20 < place.mean() < 180 for place in at])
    assert abs(spread[middle].mean() - 40 / 12**0.5) < 0.5
    assert spread[~middle].min() > 40 / 12**0.5 / 2 * 0.7, "reflection folds half of the window at most"
    assert max(np.ptp(place) for place in at) <= 41
    assert (np.diff(rows) == 1).mean() < 0.01, "neighbours in a shard are not neighbours in the order"
    for end in (rows[:250], rows[-250:]):  # of the 500 rows whose places are beyond an end
        assert abs((np.diff(end) > 0).mean() - 0.5) < 0.15, "rows at an end are as mixed as the others"


def test_a_million_rows_are_mixed_as_well_as_a_few():
    rows = shuffled(1_000_000, seed=0, epoch=0, window=Window(width=40, ends=np.arange(1000, 1_000_001, 1000)))
    assert abs((np.diff(rows) > 0).mean() - 0.5) < 0.01


def test_rows_are_numbered_in_the_smaller_type_that_has_room():
    assert (_row_type(2**31 - 1), _row_type(2**31)) == (np.int32, np.int64)


@pytest.mark.parametrize("width", [None, 7])
@pytest.mark.parametrize("shuffle", [True, False])
def test_the_order_does_not_depend_on_how_many_batches_are_sorted_at_a_time(width, shuffle, monkeypatch):
    expected, at_once = list(sampler(width, shuffle=shuffle)), len(list(sampler(width, shuffle=shuffle).blocks()))
    monkeypatch.setattr("student.data.order.BLOCK", 2)
    assert len(list(sampler(width, shuffle=shuffle).blocks())) > at_once
    assert list(sampler(width, shuffle=shuffle)) == expected


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("shuffle", [True, False])
def test_global_batches_are_the_same_on_1_2_and_4_ranks(width, shuffle):
    def global_batches(micro, accumulation, world):
        ranks = [
            list(sampler(width, micro=micro, accumulation=accumulation, world=world, rank=rank, shuffle=shuffle))
            for rank in range(world)
        ]
        announced = len(sampler(width, micro=micro, accumulation=accumulation, world=world))
        assert {len(batches) for batches in ranks} == {announced}, "every rank has the same number of micro-batches"
        return [
            sorted(
                item.row
                for batches in ranks
                for items in batches[i : i + accumulation]
                for item in items
                if item.counts
            )
            for i in range(0, len(ranks[0]), accumulation)
        ]

    one = global_batches(8, 1, 1)
    assert sorted(itertools.chain(*one)) == list(range(ROWS))
    assert one == global_batches(2, 4, 1) == global_batches(2, 2, 2) == global_batches(1, 2, 4)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("world", [1, 3])
def test_an_epoch_that_begins_in_the_middle_goes_on_as_the_whole_one(width, world):
    for rank in range(world):
        whole = list(sampler(width, world=world, rank=rank))
        for skips in (0, 1, 3, 4, 9, len(whole) - 1, len(whole)):
            part = sampler(width, world=world, rank=rank)
            part.skips = skips
            assert list(part) == [[]] * skips + whole[skips:]


def test_with_a_window_the_last_batch_is_filled_without_another_shard():
    made = sampler(2, micro=5, accumulation=5)
    *_, last = made.global_batches()
    fillers = [item.row for item in last if not item.counts]
    assert fillers and set(fillers) <= {item.row for item in last if item.counts}


def test_an_evaluation_inside_a_window_sorts_by_length_in_groups_of_shards():
    assert (by_length(LENGTHS) == np.argsort(-LENGTHS, kind="stable")).all()
    assert (by_length(LENGTHS, window(40)) == by_length(LENGTHS)).all()
    found = by_length(LENGTHS, window(7))
    groups = shard_of(found) // 7
    assert (np.diff(groups) >= 0).all() and sorted(found.tolist()) == list(range(ROWS))
    for group in range(6):
        assert (np.diff(LENGTHS[found[groups == group]]) <= 0).all()
