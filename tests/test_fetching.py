"""A data set in a store: shards are fetched ahead along the order, held while they are needed, and then let go."""

import gc
import shutil
import sys
import threading
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from fake_cache import make_cache

from shards import ShardCache
from shards.errors import OptionError, TransferFailed
from student.data.ahead import FetchAhead, Room
from student.data.fetching import FetchingSampler, Holds, Node, file_room
from student.data.loading import Loading
from student.data.responses import CachedResponses
from student.data.table import ShardTable
from student.data.uses import Uses, find_uses
from student.options import DistillArguments
from student.train.__main__ import train

ONE = Node(ranks=range(1), is_first=True)


class FakeMirror:
    """Copies shards from another folder; removes those that nobody holds, the oldest first, to stay under a limit."""

    def __init__(self, store, folder, limit=None):
        self.store, self.folder, self.limit = store, folder, limit
        self.held, self.fetched, self.most = set(), Counter(), 0
        self.broken, self.lock = None, threading.Lock()

    def hold(self, file):
        if file == self.broken:
            raise TransferFailed(f"s3://bucket/{file}: expected an answer, got status 500")
        with self.lock:
            if not (self.folder / file).exists():
                self.make_room((self.store / file).stat().st_size)
                shutil.copy(self.store / file, self.folder / file)
                self.fetched[file] += 1
            self.held.add(file)
            self.most = max(self.most, self.bytes())
        return self.folder / file

    def release(self, file):
        self.held.remove(file)

    def needed(self, shard_bytes):
        return shard_bytes + 1000  # of its index and manifest

    def bytes(self):
        return sum(path.stat().st_size for path in self.folder.glob("part-*"))

    def make_room(self, size):
        if self.limit is None:
            return
        for path in sorted(self.folder.glob("part-*"), key=lambda path: path.stat().st_mtime_ns):
            if self.bytes() + size <= self.limit - 1000:
                return
            if path.name not in self.held:
                path.unlink()
        assert self.bytes() + size <= self.limit - 1000, "the limit is too low"


def cache_of(folder, pairs=30, seed=0):
    return make_cache(folder, pairs=pairs, rows_per_shard=3, response_tokens=6, seed=seed).folder


def in_a_store(folder, *others):
    """Responses of a cache whose shards are in a store, and of others, in folders; `mirror` is that of the first."""
    made, store = CachedResponses([folder, *others], train_on="both"), folder.parent / "store"
    store.mkdir()
    for path in folder.glob("part-*"):
        path.rename(store / path.name)
    made.mirror = made.caches[0].mirror = FakeMirror(store, folder)
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return cache_of(tmp_path_factory.mktemp("made") / "cache")


@pytest.fixture
def data(made, tmp_path):
    return in_a_store(shutil.copytree(made, tmp_path / "cache"))


def options(**changed):
    return SimpleNamespace(
        **{
            **{"seed": 1, "data_seed": None, "gradient_accumulation_steps": 4, "world_size": 1, "process_index": 0},
            **{"local_process_index": 0, "shuffle_window": 3, "dataloader_num_workers": 0, "eval_batch_size": 2},
            **{"dataloader_prefetch_factor": None, "dataloader_persistent_workers": False, "eval_strategy": "no"},
            **{"dataloader_pin_memory": False},
            **changed,
        }
    )


def order(data, shuffle=True, **changed):
    return Loading(options(**changed), data, None).sampler(data, 2, shuffle=shuffle)


def fetching(data, node=ONE, in_flight=1, limit=None, **changed):
    return FetchingSampler(order(data, **changed), data, node, in_flight=in_flight, limit=limit)


def brute_force(data, sampler, ranks, lag):
    """The bytes at once, from the items themselves: step by step, all that was used and will be, or just was."""
    batches = []
    for rank in ranks:
        sampler.rank = rank
        batches.append([{int(s) for s in data.shards.of_rows(np.array([i.row for i in b]))} for b in sampler if b])
    used = [set().union(*at_once) for at_once in zip(*batches, strict=True)]
    most = 0
    for step in range(len(used) + lag):
        before = set().union(*used[: step + 1])
        after = set().union(*used[max(0, step - lag) :])
        most = max(most, sum(int(data.shards.size[s]) for s in before & after))
    return most


@pytest.mark.parametrize("window", [1, 3, 8, None])
@pytest.mark.parametrize(("world", "ranks"), [(1, range(1)), (4, range(1, 3)), (2, range(2))])
def test_the_bytes_needed_at_once_are_those_of_brute_force(data, window, world, ranks):
    for lag, epoch, skips in ((0, 0, 0), (3, 1, 0), (5, 0, 6)):
        sampler = order(data, shuffle_window=window, world_size=world)
        sampler.set_epoch(epoch)
        sampler.skips = skips
        found = find_uses(sampler, data.shards, ranks).most_at_once(data.shards.size, lag)
        assert found == brute_force(data, sampler, ranks, lag)


@pytest.mark.parametrize(("ranks", "in_flight", "lag"), [(1, 1, 0), (1, 6, 5), (2, 1, 8), (2, 3, 10)])
def test_the_need_of_a_machine_counts_what_is_in_flight_and_how_far_ranks_are_apart(data, ranks, in_flight, lag):
    node = Node(ranks=range(ranks), is_first=True)
    made = fetching(data, node, in_flight=in_flight, shuffle_window=1, world_size=ranks)
    assert made.bytes_at_once() == brute_force(data, made.batch_sampler, range(ranks), lag)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_shard_is_fetched_once_an_epoch_within_the_exact_limit(data, workers):
    loading = Loading(options(dataloader_num_workers=workers), data, None)
    sampler = loading.sampler(data, 2, shuffle=True)
    needed = loading._fetching(data, sampler).bytes_at_once()
    data.mirror.limit = needed + 1000
    loading = Loading(options(dataloader_num_workers=workers), data, None)
    loading.require_limit(sampler, range(1))
    tokens = [
        tuple(row.input_ids.tolist())
        for batch in loading.loader(data, sampler, lambda batch: batch)
        for row, counts in zip(batch.tokens, batch.counts, strict=True)
        if counts
    ]
    assert len(tokens) == len(data)
    assert set(data.mirror.fetched.values()) == {1} and len(data.mirror.fetched) == len(data.shards)
    assert data.mirror.most <= needed
    data.mirror.limit = needed + 999
    with pytest.raises(OptionError, match=rf"^cache_limit: expected {needed + 1000:,} bytes or more, which the order "):
        Loading(options(dataloader_num_workers=workers), data, None).require_limit(sampler, range(1))


@pytest.mark.parametrize("in_flight", [1, 4])
def test_held_are_exactly_the_shards_between_their_first_and_last_use_and_those_in_flight(data, in_flight):
    made = fetching(data, in_flight=in_flight)
    needed = made.bytes_at_once()
    made = fetching(data, in_flight=in_flight, limit=needed)
    data.mirror.limit = needed + 1000
    uses = made.uses()
    seen = 0
    for step, _ in enumerate(made):
        files = [data.caches[0].plan.shards[s].file for s in uses.shard]
        alive = {f for f, a, b in zip(files, uses.first, uses.last, strict=True) if a <= step <= b + in_flight - 1}
        held = set(data.mirror.held)
        assert alive <= held
        ahead = held - alive
        assert all(uses.first[files.index(f)] > step for f in ahead), "nothing is held that was used"
        seen += len(ahead)
    assert seen, "it fetches ahead as far as there is room"
    assert len(data.mirror.held) <= 2 * in_flight, "workers may still read the last micro-batches"
    del made
    gc.collect()
    assert not data.mirror.held


def test_a_rank_that_is_not_the_first_of_its_machine_holds_what_its_own_workers_read(data):
    made = fetching(data, Node(ranks=range(2), is_first=False), in_flight=2, world_size=2, process_index=1)
    before = set()
    for items in made:
        rows = np.array([item.row for item in items])
        now = {data.caches[0].plan.shards[s].file for s in data.shards.of_rows(rows)}
        assert data.mirror.held == before | now
        last, before = before | now, now
    assert data.mirror.held == last, "workers may still read the last micro-batches"
    made.set_epoch(1)
    assert made.batch_sampler.epoch == 1
    items = next(batches := iter(made))
    now = {data.caches[0].plan.shards[s].file for s in data.shards.of_rows(np.array([item.row for item in items]))}
    assert data.mirror.held == now, "of the epoch before nothing is"
    batches.close()


def test_an_epoch_that_begins_in_the_middle_fetches_only_what_is_left(data):
    whole = fetching(data, shuffle_window=2)
    uses, half = whole.uses(), len(whole) // 2
    whole.batch_sampler.skips = half
    assert sum(1 for items in whole if items) == len(whole) - half
    left = {data.caches[0].plan.shards[s].file for s in uses.shard[uses.last >= half]}
    assert set(data.mirror.fetched) == left and len(left) < len(data.shards)


def test_an_error_of_the_thread_reaches_the_order_as_its_line(data):
    made = fetching(data)
    last = made.uses().shard[-1]
    data.mirror.broken = data.caches[0].plan.shards[last].file
    with pytest.raises(TransferFailed, match=r"^s3://bucket/part-\d+\.arrow: expected an answer, got status 500$"):
        list(made)
    gc.collect()
    assert not data.mirror.held and not threads()


def test_a_step_begins_when_the_last_of_its_shards_is_here():
    here = []

    def take(shard):
        if shard == 2:
            time.sleep(0.05)
        here.append(shard)

    uses = Uses(shard=np.arange(3), first=np.array([0, 1, 1]), last=np.full(3, 1))
    ahead = FetchAhead(take, here.remove, uses, np.ones(3), lag=0, room=Room(bytes=None, files=9))
    ahead.start()
    try:
        ahead.reach(1)
        assert here == [0, 1, 2]
    finally:
        ahead.stop()
    assert not here


def test_whatever_ends_the_thread_is_raised_and_not_waited_for():
    def take(shard):
        raise ZeroDivisionError("a bug")

    uses = Uses(shard=np.arange(1), first=np.arange(1), last=np.arange(1))
    ahead = FetchAhead(take, print, uses, np.ones(1), lag=0, room=Room(bytes=None, files=9))
    ahead.start()
    with pytest.raises(ZeroDivisionError, match="a bug"):
        ahead.reach(0)
    ahead.stop()


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "fetch ahead"]


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_the_thread_ends_and_nothing_stays_held_where_an_epoch_is_left_early(data, steps):
    made = fetching(data)
    batches = iter(made)
    for _ in range(steps):
        next(batches)
    del batches
    assert not threads() and not data.mirror.held


def test_the_thread_ends_with_the_interpreter_while_it_waits_for_room(monkeypatch):
    at_exit, taken, dropped = [], [], []
    monkeypatch.setattr("atexit.register", at_exit.append)
    monkeypatch.setattr("atexit.unregister", at_exit.remove)
    uses = Uses(shard=np.arange(9), first=np.arange(9), last=np.arange(9))
    ahead = FetchAhead(taken.append, dropped.append, uses, np.ones(9), lag=0, room=Room(bytes=2, files=99))
    ahead.start()
    ahead.reach(0)
    ahead.reach(1)
    assert dropped == [0]
    for _ in range(500):
        if taken == [0, 1, 2]:
            break
        time.sleep(0.01)
    time.sleep(0.05)  # it waits now
    (thread,) = threads()
    assert thread.daemon, "the interpreter joins others before it calls what is registered"
    (stop,) = at_exit
    stop()
    assert not threads() and dropped == [0, 1, 2] and not at_exit


def test_a_shard_that_is_taken_is_not_let_go_by_the_other_thread_meanwhile(data, monkeypatch):
    holds, released = Holds(data), []
    holds.take(0)
    monkeypatch.setattr(data.mirror, "release", released.append)
    monkeypatch.setattr(data.mirror, "hold", lambda file: holds.drop(0))
    holds.take(0)
    assert not released
    holds.drop(0)
    assert len(released) == 1


def test_a_transfer_that_outlives_the_end_drops_its_own_shard(monkeypatch):
    monkeypatch.setattr("student.data.ahead.STOP_SECONDS", 0.01)
    goes_on, dropped = threading.Event(), []
    uses = Uses(shard=np.arange(2), first=np.arange(2), last=np.arange(2))
    ahead = FetchAhead(
        lambda shard: goes_on.wait(10), dropped.append, uses, np.ones(2), lag=0, room=Room(bytes=None, files=9)
    )
    ahead.start()
    ahead.stop()
    assert dropped == []
    goes_on.set()
    for _ in range(500):
        if not threads():
            break
        time.sleep(0.01)
    assert dropped == [0]


def test_no_more_shards_are_held_than_files_may_be_open(data, monkeypatch):
    monkeypatch.setattr("student.data.fetching.file_room", lambda: 5)
    most = 0
    for _ in fetching(data, shuffle_window=1, limit=10**9):
        most = max(most, len(data.mirror.held))
    assert most == 5
    with pytest.raises(
        OptionError, match=r"^shuffle_window: expected at most 5 shards at once \(ulimit -n\), got \d+$"
    ):
        next(iter(fetching(data, shuffle_window=8, limit=10**9)))


@pytest.mark.parametrize(("hard", "room"), [(4096, 2048), (-1, sys.maxsize)])
def test_as_many_files_are_opened_as_the_system_allows_and_half_are_left_for_others(hard, room, monkeypatch):
    limits = {"files": (256, hard)}
    system = SimpleNamespace(
        RLIMIT_NOFILE="files", RLIM_INFINITY=-1, getrlimit=limits.get, setrlimit=limits.__setitem__
    )
    monkeypatch.setattr("student.data.fetching.resource", system)
    assert file_room() == room and limits == {"files": (hard, hard)}


def test_the_table_has_the_shards_with_rows_of_the_data_set_in_the_order_of_its_rows(tmp_path):
    caches = [ShardCache(cache_of(tmp_path / str(seed), 6, seed)) for seed in range(2)]
    wanted = [np.array([1, 7, 8, 9]), np.array([0, 2, 11])]
    table = ShardTable.of(caches, wanted)
    expected = [(i, max(n for n, s in enumerate(cache.plan.shards) if s.first_row <= row))
                for i, cache in enumerate(caches) for row in wanted[i]]  # fmt: skip
    of_row = table.of_rows(np.arange(7))
    assert list(zip(table.cache[of_row], table.number[of_row], strict=True)) == expected
    shards = list(dict.fromkeys(expected))
    assert list(zip(table.cache, table.number, strict=True)) == shards and len(table) == len(shards) == 5
    files = [caches[i].folder / caches[i].plan.shards[number].file for i, number in shards]
    assert table.size.tolist() == [file.stat().st_size for file in files]


def test_a_cache_in_a_folder_is_read_without_a_thread(tmp_path):
    fake = make_cache(tmp_path / "cache", pairs=4)
    data = CachedResponses([fake.folder], train_on="both")
    loading = Loading(options(), data, None)
    sampler = loading.sampler(data, 2, shuffle=True)
    assert loading.loader(data, sampler, list).batch_sampler is sampler


def test_beside_a_cache_in_a_folder_only_the_shards_in_the_store_are_fetched_and_counted(tmp_path, monkeypatch):
    both = in_a_store(cache_of(tmp_path / "one", 9), cache_of(tmp_path / "two", 9, seed=1))
    stored = both.shards.cache == 0
    made = fetching(both, limit=10**9, shuffle_window=2)
    uses = made.uses()
    assert made.bytes_at_once() == uses.most_at_once(both.shards.size * stored, made.lag)
    files = uses.most_at_once(stored.astype(int), made.lag)
    assert files < uses.most_at_once(np.ones(len(stored), int), made.lag)
    monkeypatch.setattr("student.data.fetching.file_room", lambda: files)
    list(made)
    assert set(both.mirror.fetched) == {shard.file for shard in both.caches[0].plan.shards}
    assert uses.only(np.zeros(len(stored), bool)).most_at_once(both.shards.size, 3) == 0


def test_an_evaluation_during_the_training_has_room_of_its_own(data):
    trained = fetching(data).bytes_at_once()
    evaluated = fetching(data, shuffle=False).bytes_at_once()
    data.mirror.limit = trained + evaluated + 2000 - 1
    loading = Loading(options(eval_strategy="steps"), data, data)
    with pytest.raises(OptionError, match=rf"expected {trained + evaluated + 2000:,} bytes or more"):
        loading.require_limit(order(data), range(1))
    Loading(options(), data, data).require_limit(order(data), range(1))
    data.mirror.limit += 1
    loading = Loading(options(eval_strategy="steps"), data, data)
    loading.require_limit(order(data), range(1))
    assert loading._fetching(data, order(data)).limit == trained
    assert loading._fetching(data, order(data, shuffle=False)).limit == trained + evaluated


def test_an_evaluation_alone_and_every_epoch_have_room(data, tmp_path):
    evaluated = fetching(data, shuffle=False).bytes_at_once()
    data.mirror.limit = evaluated + 1000 - 1
    here = CachedResponses([cache_of(tmp_path / "here", 3)], train_on="both")
    with pytest.raises(OptionError, match=rf"expected {evaluated + 1000:,} bytes or more"):
        Loading(options(), here, data).require_limit(order(here), range(1))
    made, needs = fetching(data), []
    for epoch in range(6):
        made.set_epoch(epoch)
        needs.append(made.bytes_at_once())
    first = next(epoch for epoch in range(6) if needs[epoch] < max(needs[epoch:]))
    most = max(needs[first:])
    data.mirror.limit, sampler = most + 1000 - 1, order(data)
    with pytest.raises(OptionError, match=rf"expected {most + 1000:,} bytes or more"):
        Loading(options(), data, None).require_limit(sampler, range(first, 6))
    assert sampler.epoch == 0, "the order itself stays where it is"


@pytest.mark.parametrize(("workers", "prefetch", "in_flight"), [(0, None, 1), (2, None, 4), (2, 3, 6)])
def test_what_workers_fetch_ahead_is_in_flight(data, workers, prefetch, in_flight):
    loading = Loading(options(dataloader_num_workers=workers, dataloader_prefetch_factor=prefetch), data, None)
    assert loading._fetching(data, order(data)).in_flight == in_flight


def test_a_student_of_a_bucket_trains_within_the_limit_that_the_refusal_names(
    sparse_cache, bucket, trio_folders, tmp_path
):
    url = bucket.upload(sparse_cache.folder, "cache")
    largest = max(entry.bytes for entry in sparse_cache.manifest.entries)
    too_low = ShardCache(url).mirror.needed(2 * largest)

    def run(place, name, **flags):
        given = {"model": str(trio_folders["reference"]), "train_on": "both", "global_batch_size": 4}
        given |= {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "warmup_steps": 0}
        given |= {"per_device_train_batch_size": 2, "num_train_epochs": 2, "learning_rate": 1e-3, "shuffle_window": 2}
        return train(DistillArguments(output_dir=str(tmp_path / name), shards=[str(place)], **given, **flags))

    room = {"cache_dir": str(tmp_path / "room")}
    with pytest.raises(OptionError, match=r"^cache_limit: expected \S+ bytes or more, which the order ") as refused:
        run(url, "low", cache_limit=str(too_low), **room)
    needed = str(refused.value).split()[2].replace(",", "")
    there = run(url, "there", cache_limit=needed, dataloader_num_workers=1, **room)
    here = run(sparse_cache.folder, "here")
    losses = [[entry["loss"] for entry in one.state.log_history if "loss" in entry] for one in (here, there)]
    assert losses[0] == losses[1]
    assert sum(path.stat().st_size for path in (tmp_path / "room").rglob("*") if path.name != ".used") <= int(needed)
    assert not threads()
