"""The fit of a learned strength reads its pairs block by block: the same numbers, the memory of one block."""

import multiprocessing
import socket
import tracemalloc
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pytest
import torch.distributed as dist
from fake_cache import make_cache

from shards import ShardCache, TeacherSpec
from shards.errors import DataError, OptionError
from shards.format.nodes import StrengthNodes
from shards.format.scores import concatenate
from shards.preferences import pairs as pairs_module
from shards.preferences import ratio_file
from shards.preferences.pairs import find_pairs, fit
from shards.preferences.ratio_file import RatioFile
from shards.preferences.ratio_table import tabulate
from shards.preferences.strength import fit_learned, total_likelihood
from student.runs.processes import by_first_process

LEARNED = TeacherSpec.preset("adaptive", strength="learned")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blocks")
    make_cache(folder, pairs=60, rows_per_shard=40)
    return ShardCache(folder)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(pairs_module, "BLOCK_POSITIONS", 60)


def whole_table(cache):
    """All pairs in one table, as in the formulas, in float64 and in memory."""
    pairs = find_pairs(cache)
    parts = [response.scores for response in cache.read(pairs.rows.ravel().tolist())]
    sizes = np.array([part.num_positions for part in parts])
    table = tabulate(concatenate(parts), sizes, LEARNED.pair, cache.plan.nodes)
    return table, np.arange(len(sizes)).reshape(-1, 2)


def test_blocks_on_disk_give_the_likelihood_and_the_fit_of_one_table(cache, small_blocks):
    whole = whole_table(cache)
    with RatioFile(cache.plan.nodes, len(whole[0].distance)) as blocks:
        for scores, sizes in pairs_module._blocks(cache, find_pairs(cache), [LEARNED.pair], ""):
            blocks.append(tabulate(scores, sizes, LEARNED.pair, cache.plan.nodes))
        assert len(list(blocks)) > 5
        assert sum(len(table.distance) for table, _ in blocks) == len(whole[0].distance)
        for point in [(-0.5, 2.0), (3.0, -1.0), (2.0, 30.0)]:
            found, expected = total_likelihood(blocks, *point), total_likelihood([whole], *point)
            assert found.value == pytest.approx(expected.value, rel=1e-7)
            np.testing.assert_allclose(found.gradient, expected.gradient, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(found.hessian, expected.hessian, rtol=1e-4, atol=1e-4)
        numbers = fit_learned(blocks, cache.plan.nodes)
    assert numbers == fit_learned([whole], cache.plan.nodes)
    fitted = fit([(cache, find_pairs(cache))], LEARNED)
    assert (fitted.spec.learned_offset, fitted.spec.learned_slope) == numbers


def test_pairs_do_not_grow_the_memory(cache, small_blocks, monkeypatch):
    monkeypatch.setattr(pairs_module, "STRENGTH_BINS", 100)  # a megabyte that is there whatever the pairs
    pairs = find_pairs(cache)
    few = pairs.where(pairs.pair_id < 15)
    cache.read(range(len(cache)), pairs=())  # so that every file is open

    def peak(some):
        tracemalloc.start()
        fit([(cache, some)], LEARNED)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(pairs) < 1.6 * peak(few), "four times the pairs, and blocks that differ a little"


def test_pairs_are_found_wherever_their_rows_are(cache):
    pairs = find_pairs(cache)
    index = cache.index
    for pair_id, (chosen, rejected) in zip(pairs.pair_id, pairs.rows, strict=True):
        assert index.pair_id[[chosen, rejected]].tolist() == [pair_id, pair_id]
        assert index.chosen[[chosen, rejected]].tolist() == [True, False]


def test_a_disk_without_room_for_the_fit_is_said_before_the_work(monkeypatch):
    monkeypatch.setattr(ratio_file.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    with RatioFile(StrengthNodes(), 2**20 // 108) as blocks:
        assert blocks.bytes_per_position == 108
    with pytest.raises(OptionError, match=r"^TMPDIR: expected 0\.10 GiB free in \S+ for the fit of a learned strength"):
        RatioFile(StrengthNodes(), 10**6)


# ---- several processes


def _process(rank, port, queue, fails):
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    ran = []

    def work():
        ran.append(rank)
        if fails is not None:
            raise fails
        return {"offset": 0.25}

    try:
        found = by_first_process(work)
    except Exception as exc:
        found = (type(exc).__name__, str(exc))
    dist.barrier()
    queue.put((rank, ran, found))
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("fails", "expected"),
    [
        (None, [{"offset": 0.25}] * 2),
        (DataError("no pairs"), [("DataError", "no pairs")] * 2),
        (KeyError("x"), [("KeyError", "'x'"), ("AlignDistilError", "'x'")]),
    ],
    ids=["result", "refusal", "fault"],
)
def test_the_first_process_works_for_all_and_its_errors_reach_all(fails, expected):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_process, args=(rank, port, queue, fails)) for rank in range(2)]
    for process in processes:
        process.start()
    found = sorted(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert [ran for _, ran, _ in found] == [[0], []], "the others do not work"
    assert [result for _, _, result in found] == expected
