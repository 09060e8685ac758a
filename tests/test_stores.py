"""Object stores: what is read from a URL is what was written, or the command ends with one line."""

import errno
import fcntl
import gc
import json
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_cache import flat, make_cache
from object_server import KEY_ID, SECRET

from precompute.data.reading import read_rows
from precompute.data.sources import Data
from shards import ShardCache
from shards.errors import CacheDamaged, CacheMissing, DataError, OptionError, TransferFailed
from shards.places import mirror as mirror_module
from shards.places import objects
from shards.places import room as room_module
from shards.places.faults import fault_of
from shards.places.objects import ObjectStore
from shards.places.room import Room, parse_bytes
from shards.places.url import is_url, parse_url
from shards.places.whole_file import fetch_file

SHARDS = {f"part-{number:05d}.arrow" for number in range(3)}


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    """Ten rows in three shards."""
    return make_cache(tmp_path_factory.mktemp("fake") / "cache")


def read_all(cache):
    return [flat(response) for response in cache.read(range(len(cache)))]


UPLOADED: dict[Path, str] = {}


@pytest.fixture
def url(fake, bucket):
    """The ten rows in the store; uploaded once, for tests that change nothing there."""
    if fake.folder not in UPLOADED:
        UPLOADED[fake.folder] = bucket.upload(fake.folder, "cache")
    return UPLOADED[fake.folder]


def same(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert (ours[name] == value) if not hasattr(value, "shape") else (ours[name] == value).all(), name


# URLs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/a/b", ("s3", "bucket", "a/b")),
        ("gs://bucket", ("gs", "bucket", "")),
        ("az://container/x/", ("az", "container", "x")),
        ("hf://datasets/owner/name", ("hf", "datasets", "owner/name")),
    ],
)
def test_a_url_has_a_scheme_a_bucket_and_a_prefix(text, expected):
    url = parse_url(text)
    assert (url.scheme, url.bucket, url.prefix) == expected
    assert str(url) == text.rstrip("/")


@pytest.mark.parametrize(
    "text",
    ["http://x/y", "file:///tmp", "s3://", "s3:///x", "s3://b//x", "s3://b/../x", "s3a://b/x", "S3://b", "s3://b/./x"],
)
def test_a_url_that_means_nothing_here_is_refused(text):
    assert is_url(text)
    with pytest.raises(OptionError, match="expected") as error:
        parse_url(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["s3://me:hunter2@bucket/x", "s3://bucket/x?X-Amz-Signature=hunter2", "s3://b/x#hunter2"]
)
def test_a_url_with_a_secret_is_refused_without_repeating_it(text):
    with pytest.raises(OptionError, match="credentials are read from the environment") as error:
        parse_url(text)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("text", ["shards", "/tmp/a", "owner/name", "a:b", "C:/x", Path("s3://x")])
def test_a_path_or_hub_name_is_no_url(text):
    assert not is_url(text)


@pytest.mark.parametrize(
    ("text", "value"), [("200GB", 200 * 10**9), ("1.5GiB", 3 << 29), ("123", 123), (7, 7), ("2 kb", 2000), (None, None)]
)
def test_a_limit_is_read_in_bytes(text, value):
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["much", "-1GB", "0", "1XB", "GB", "1e9"])
def test_a_limit_that_is_no_number_of_bytes_is_refused(text):
    with pytest.raises(OptionError, match="cache_limit: expected bytes"):
        parse_bytes(text)


# The client


@pytest.fixture
def store(bucket):
    return ObjectStore(parse_url(bucket.url("folder")))


CONTENT = bytes(range(256)) * 40


@pytest.fixture
def hurried(bucket, monkeypatch):
    """A client that waits only for a moment."""
    monkeypatch.setattr(objects, "PATIENCE", objects.Patience(read=0.3, whole=0.6, tries=3, pause=0.01))


@pytest.mark.parametrize("kind", ["drop", "500", "503", "429", "truncated"])
def test_a_transfer_that_fails_twice_is_tried_again(store, bucket, tmp_path, kind):
    store.put("x", CONTENT)
    bucket.proxy.fail(kind, key="x", times=2)
    assert store.read("x") == CONTENT
    (tmp_path / "x").write_bytes(b"old and longer" * 1000)
    bucket.proxy.fail(kind, key="x", times=2)
    store.fetch("x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert bucket.proxy.count("GET") == {"x": 6}


@pytest.mark.parametrize("kind", ["stall", "silent", "slow"])
def test_bytes_that_do_not_come_are_not_waited_for(hurried, bucket, kind):
    store = ObjectStore(parse_url(bucket.url("folder")))
    store.put("x", CONTENT)
    bucket.proxy.fail(kind, key="x")
    assert store.read("x") == CONTENT
    assert bucket.proxy.count("GET")["x"] > 1


@pytest.mark.parametrize("kind", ["drop", "500", "truncated"])
def test_a_transfer_that_always_fails_ends_with_one_line(store, bucket, kind):
    store.put("x", CONTENT)
    bucket.proxy.fail(kind, key="x", times=99)
    with pytest.raises(
        TransferFailed, match=r"s3://bucket-\d+/folder/x: expected a whole transfer, got .* \(3 tries\)"
    ):
        store.read("x")
    assert bucket.proxy.count("GET")["x"] == 3


@pytest.mark.parametrize("kind", ["400", "401", "403", "404"])
def test_what_another_try_does_not_help_is_tried_once(store, bucket, kind):
    store.put("x", CONTENT)
    bucket.proxy.fail(kind, key="x", times=99)
    with pytest.raises((TransferFailed, CacheMissing), match="folder/x: expected") as error:
        store.read("x")
    assert bucket.proxy.count("GET")["x"] == 1
    assert "\n" not in str(error.value)
    assert KEY_ID not in str(error.value)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("number", [408, 425, 429, 500, 502, 503, 504])
def test_a_status_that_may_pass_is_worth_another_try(number):
    assert fault_of(RuntimeError(f"the server answered with status code: {number}, at last")).passes


@pytest.mark.parametrize(
    ("message", "text"),
    [
        *[(f"status code: {number} at last", f"status {number}") for number in (400, 401, 403, 409, 412, 416, 501)],
        ("Generic S3 error { source: MissingAccessKeyId, }", "MissingAccessKeyId: no credentials or account in the "),
        ("Generic error { source: BareRedirect }", "a redirection, which means another region: set AWS_REGION"),
        ("Generic error { source: BadScheme }", "an http:// address, which needs AWS_ALLOW_HTTP=true"),
        ("a plain error", "RuntimeError of the client"),
    ],
)
def test_what_does_not_pass_is_told_in_a_few_words(message, text):
    found = fault_of(RuntimeError(message + f" <Code>Key {SECRET}</Code>"))
    assert found.text.startswith(text) and not found.passes and SECRET not in found.text
    assert found.conditional == ("501" in message)


@pytest.mark.parametrize(
    ("kind", "text", "passes"),
    [
        ("GenericError", "GenericError of the client", True),
        ("PermissionDeniedError", "no permission", False),
        ("UnauthenticatedError", "no valid credentials", False),
    ],
)
def test_a_kind_of_the_client_is_told_where_it_gives_no_status(kind, text, passes):
    found = fault_of(type(kind, (Exception,), {})(SECRET))
    assert (found.text, found.passes) == (text, passes)


def test_pauses_between_tries_grow_up_to_a_bound_and_are_not_the_same_for_all(store, bucket, monkeypatch):
    pauses = []
    monkeypatch.setattr(objects, "time", SimpleNamespace(sleep=pauses.append))
    store.patience = objects.Patience(tries=8, pause=0.25, longest_pause=2)
    bucket.proxy.fail("500", times=8)
    with pytest.raises(TransferFailed, match=r"\(8 tries\)$"):
        store.read("x")
    longest = [0.25, 0.5, 1, 2, 2, 2, 2]
    assert all(most / 2 <= pause <= most for pause, most in zip(pauses, longest, strict=True))
    assert len({pause / most for pause, most in zip(pauses, longest, strict=True)}) > 3


def test_a_body_that_ends_early_without_an_error_of_the_client_is_tried_again(store, bucket, monkeypatch):
    import obstore

    store.put("x", CONTENT)
    plain, short = obstore.get, [b"half", b"half"]

    def get(*args):
        found = plain(*args)
        return SimpleNamespace(meta=found.meta, stream=lambda **_: [short.pop()]) if short else found

    monkeypatch.setattr(obstore, "get", get)
    assert store.read("x") == CONTENT and not short
    short += [b"half"] * 3
    with pytest.raises(TransferFailed, match="got fewer bytes than announced"):
        store.read("x")


def test_an_object_that_is_there_is_not_replaced(store):
    assert store.put("x", b"first")
    assert not store.put("x", b"second")
    assert store.read("x") == b"first"
    assert store.put("x", b"third", create=False)
    assert store.read("x") == b"third"


def test_a_put_whose_answer_is_lost_is_found_there(store, bucket):
    bucket.proxy.fail("lost", method="PUT")
    assert not store.put("x", CONTENT)
    assert store.read("x") == CONTENT


def test_a_server_without_conditional_writes_is_written_to_after_a_look(store, bucket):
    bucket.proxy.fail("501", method="PUT")
    assert store.put("x", CONTENT)
    bucket.proxy.fail("501", method="PUT")
    assert not store.put("x", b"other")
    assert store.read("x") == CONTENT


def test_a_list_has_the_files_of_the_folder_alone(store, bucket):
    for name in ("a", "b", "c/d"):
        store.put(name, CONTENT)
    ObjectStore(parse_url(bucket.url("folder-2"))).put("e", CONTENT)
    assert store.sizes() == {"a": len(CONTENT), "b": len(CONTENT)}
    assert ObjectStore(parse_url(bucket.url())).sizes() == {}


def test_a_missing_object_and_a_missing_bucket_are_missing_files(store):
    with pytest.raises(CacheMissing, match="folder/x: expected an object, found none"):
        store.read("x")
    with pytest.raises(CacheMissing, match="expected a bucket nowhere, found none"):
        ObjectStore(parse_url("s3://nowhere/x")).read("y")
    with pytest.raises(CacheMissing, match="expected a bucket nowhere, found none"):
        ObjectStore(parse_url("s3://nowhere/x")).put("y", b"")
    with pytest.raises(TransferFailed, match="NoSuchBucket"):
        ObjectStore(parse_url("s3://nowhere/x")).sizes()


def test_the_version_of_an_object_changes_with_its_content(store):
    store.put("x", b"one")
    first = store.version("x")
    store.put("x", b"two", create=False)
    assert store.version("x") != first
    assert store.version("x")[1] == 3


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("AWS_ALLOW_HTTP", None, "AWS_ALLOW_HTTP=true"),
        ("AWS_ACCESS_KEY_ID", None, "no credentials"),
        ("AWS_ENDPOINT_URL", "nonsense", "AWS_ENDPOINT_URL to begin with http"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "no connection to the server"),
        ("AWS_READ_TIMEOUT", "soon", "expected settings that open the store"),
    ],
)
def test_settings_that_open_nothing_are_named_in_one_line(store, monkeypatch, name, value, text):
    monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises((OptionError, TransferFailed), match=text) as error:
        store.read("x")
    assert "\n" not in str(error.value)
    assert SECRET not in str(error.value)


def test_without_obstore_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    with pytest.raises(OptionError, match=r"install aligndistil-offline\[stores\]"):
        ObjectStore(parse_url("s3://bucket/x")).read("y")


def in_a_fork(work):
    """What `work` raises or returns in a forked process, as text."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text = str(work())
        except Exception as exc:
            text = f"{type(exc).__name__}: {exc}"
        os.write(writing, text.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        found = file.read()
    os.waitpid(child, 0)
    return found


def test_a_forked_process_is_refused_instead_of_waiting_for_ever(store):
    store.put("x", CONTENT)
    assert "expected transfers in the main process only" in in_a_fork(lambda: store.read("x"))
    other = ObjectStore(store.url)
    assert "expected transfers in the main process only" in in_a_fork(lambda: other.read("x"))
    other = pickle.loads(pickle.dumps(store))
    assert other._client is None and other.read("x") == CONTENT


# Caches


def test_a_cache_at_a_url_has_the_values_of_the_folder(fake, bucket, url):
    cache = ShardCache(url)
    same(read_all(cache), read_all(ShardCache(fake.folder)))
    assert cache.vocabulary == fake.vocabulary
    assert cache.provenance == ShardCache(fake.folder).provenance


def test_opening_costs_three_requests_and_an_epoch_one_for_each_shard(fake, bucket, url):
    cache = ShardCache(url)
    _ = cache.index
    assert bucket.proxy.requests == [("GET", "cache/manifest.json"), ("GET", ""), ("GET", "cache/index.arrow")]
    bucket.proxy.forget()
    for _ in range(2):
        read_all(cache)
    assert bucket.proxy.count("GET") == dict.fromkeys(SHARDS, 1)
    bucket.proxy.forget()
    again = ShardCache(cache.name)
    read_all(again), again.index
    assert bucket.proxy.count("GET") == {"manifest.json": 1, "": 1}


def test_a_cache_without_a_manifest_is_missing_and_a_begun_build_is_named(fake, bucket):
    with pytest.raises(CacheMissing, match=r"s3://bucket-\d+/cache: expected a cache, found no manifest.json"):
        ShardCache(bucket.url("cache"))
    ObjectStore(parse_url(bucket.url("cache"))).put("plan.json", fake.folder / "plan.json")
    with pytest.raises(CacheMissing, match="found a build that was begun"):
        ShardCache(bucket.url("cache"))


@pytest.mark.parametrize("kind", ["drop", "503", "truncated", "altered"])
def test_a_shard_that_fails_once_is_read_rightly(fake, bucket, url, kind):
    cache = ShardCache(url)
    bucket.proxy.fail(kind, key="part-00001.arrow")
    same(read_all(cache), read_all(ShardCache(fake.folder)))
    assert bucket.proxy.count("GET")["part-00001.arrow"] == 2


def test_a_shard_that_arrives_altered_twice_is_damaged_and_a_broken_transfer_is_not(fake, bucket, url):
    cache = ShardCache(url)
    bucket.proxy.fail("altered", key="part-00001.arrow", times=2)
    with pytest.raises(CacheDamaged, match=r"s3://bucket-\d+/cache/part-00001.arrow: expected sha256 .*, twice"):
        read_all(cache)
    bucket.proxy.fail("truncated", key="part-00001.arrow", times=3)
    with pytest.raises(TransferFailed, match=r"s3://bucket-\d+/cache/part-00001.arrow: expected a whole transfer"):
        read_all(cache)
    same(read_all(cache), read_all(ShardCache(fake.folder)))
    cache.mirror.ensure("part-00000.arrow", fresh=True)
    assert counted(cache.mirror.room) == used(cache.mirror.room), "what failed, and what was replaced, is not counted"


def test_a_file_that_two_need_at_once_is_fetched_by_one(fake, url, monkeypatch):
    mirror, file, calls, second = ShardCache(url).mirror, "part-00000.arrow", [], threading.Event()
    plain = mirror.store.fetch

    def fetch(*given):
        calls.append(given)
        second.set() if len(calls) > 1 else second.wait(0.2)
        plain(*given)

    monkeypatch.setattr(mirror.store, "fetch", fetch)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(mirror.ensure, [file] * 2))
    assert len(calls) == 1 and found[0].read_bytes() == (fake.folder / file).read_bytes()
    assert not list(mirror.folder.glob("*.part"))


def test_a_file_that_one_could_not_fetch_is_fetched_by_the_other_who_waited(fake, url, monkeypatch):
    mirror, file, begun = ShardCache(url).mirror, "part-00000.arrow", threading.Event()
    plain, order = mirror.store.fetch, []

    def fetch(*given):
        begun.set()
        order.append(given)
        if len(order) == 1:
            time.sleep(0.1)  # the other one waits for the lock
            raise TransferFailed("a broken connection")
        plain(*given)

    monkeypatch.setattr(mirror.store, "fetch", fetch)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(mirror.ensure, file)
        assert begun.wait(10)
        second = pool.submit(mirror.ensure, file)
        with pytest.raises(TransferFailed):
            first.result()
        assert second.result().read_bytes() == (fake.folder / file).read_bytes()


def test_a_copy_that_was_cut_on_this_machine_is_fetched_again(fake, url):
    mirror, file = ShardCache(url).mirror, "part-00000.arrow"
    mirror.ensure(file).write_bytes(b"half")
    assert mirror.ensure(file).read_bytes() == (fake.folder / file).read_bytes()


def test_a_forked_process_that_ends_leaves_the_holds_to_its_parent(url, tmp_path):
    mirror = ShardCache(url, Room(tmp_path / "room", 10**9)).mirror
    path = mirror.hold("part-00000.arrow")
    in_a_fork(mirror._end)
    assert not room_module.remove_free(path)
    mirror.release(path.name)
    assert room_module.remove_free(path)


def test_a_copy_is_on_the_disk_before_it_has_its_name(url, monkeypatch):
    mirror, named = ShardCache(url).mirror, []
    monkeypatch.setattr(os, "fsync", lambda descriptor: named.append((mirror.folder / "part-00000.arrow").exists()))
    mirror.ensure("part-00000.arrow")
    assert named == [False]


def test_a_list_that_differs_from_the_manifest_is_refused_at_opening(fake, bucket):
    url = bucket.upload(fake.folder, "cache")
    ObjectStore(parse_url(url)).put("part-00001.arrow", b"short", create=False)
    with pytest.raises(CacheDamaged, match=r"cache/part-00001.arrow: expected \d+ bytes, got 5"):
        ShardCache(url)


@pytest.mark.parametrize("file", ["vocabulary.json", "plan.json", "index.arrow"])
def test_a_file_beside_the_shards_that_was_altered_in_the_store_is_refused_on_arrival(fake, bucket, file):
    url = bucket.upload(fake.folder, "cache")
    content = bytearray((fake.folder / file).read_bytes())
    content[40] ^= 1
    ObjectStore(parse_url(url)).put(file, bytes(content), create=False)
    with pytest.raises(CacheDamaged, match=rf"^{url}/{file}: expected sha256 .*, twice"):
        ShardCache(url).bring(file)


def test_another_cache_under_the_same_url_is_not_mixed_with_the_first(fake, bucket, tmp_path):
    url = bucket.upload(fake.folder, "cache")
    read_all(ShardCache(url))
    other = make_cache(tmp_path / "other", seed=1)
    store = ObjectStore(parse_url(url))
    for path in other.folder.iterdir():
        store.put(path.name, path, create=False)
    same(read_all(ShardCache(url)), read_all(ShardCache(other.folder)))


def test_a_copy_that_was_altered_on_this_machine_is_named_as_such(fake, bucket, url):
    cache = ShardCache(url)
    read_all(cache)
    path = cache.folder / "part-00001.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CacheDamaged, match=f"{path}: expected the copy of s3://.* as it arrived"):
        read_all(ShardCache(cache.name))


def test_a_pickled_cache_reads_the_copies(fake, bucket, url):
    cache = ShardCache(url)
    expected = read_all(cache)
    bucket.proxy.forget()
    same(read_all(pickle.loads(pickle.dumps(cache))), expected)
    assert in_a_fork(lambda: len(read_all(cache))) == str(len(cache))
    assert bucket.proxy.requests == []


def test_a_forked_worker_does_not_fetch(fake, bucket, url):
    cache = ShardCache(url)
    assert "TransferFailed" in in_a_fork(lambda: read_all(cache))


# The limit


def shard_bytes(fake):
    return [(fake.folder / name).stat().st_size for name in sorted(SHARDS)]


def used(room):
    return sum(path.stat().st_size for path in room.folder.rglob("*") if path.is_file() and path.name != ".used")


def counted(room):
    return int((room.folder / ".used").read_text())


def opening_bytes(fake):
    names = ("manifest.json", "index.arrow", "plan.json", "vocabulary.json", "provenance.json")
    return sum((fake.folder / name).stat().st_size for name in names) + 200


def test_a_limit_removes_what_was_used_longest_ago_and_is_never_exceeded(fake, bucket, url, tmp_path):
    sizes = shard_bytes(fake)
    room = Room(tmp_path / "room", 10**9)
    cache = ShardCache(url, room)
    room.limit = used(room) + sum(sizes) - 1
    expected = read_all(ShardCache(fake.folder))
    for _ in range(2):
        for row in range(len(cache)):
            same([flat(cache[row])], [expected[row]])
            assert used(room) <= room.limit
    assert bucket.proxy.count("GET")["part-00000.arrow"] == 2
    assert counted(room) == used(room)


def test_a_copy_that_was_used_again_outlives_one_that_was_not(fake, bucket, url, tmp_path):
    cache = ShardCache(url, Room(tmp_path / "room", opening_bytes(fake) + sum(shard_bytes(fake)[:2])))
    first, second = (cache.mirror.ensure(f"part-{i:05d}.arrow") for i in range(2))
    os.utime(first, (1, 1)), os.utime(second, (2, 2))
    cache.mirror.ensure(first.name)
    cache.mirror.ensure("part-00002.arrow")
    assert first.exists() and not second.exists()


def test_a_limit_under_the_largest_shard_is_refused_with_the_number(fake, bucket, url, tmp_path):
    with pytest.raises(OptionError, match=r"cache_limit: expected [\d,]+ bytes or more .* got 1,000") as error:
        ShardCache(url, Room(tmp_path / "room", 1000))
    needed = int(str(error.value).split()[2].replace(",", ""))
    cache = ShardCache(url, Room(tmp_path / "room", needed))
    for name in cache.mirror.sizes:
        cache.mirror.ensure(name)
    same(read_all(cache), read_all(ShardCache(fake.folder)))
    with pytest.raises(CacheMissing, match=r"s3://.*/cache: expected a cache, found no nothing"):
        cache.mirror.ensure("nothing")


def test_a_held_shard_is_not_removed(fake, bucket, url, tmp_path):
    room = Room(tmp_path / "room", opening_bytes(fake) + sum(shard_bytes(fake)[:2]))
    cache = ShardCache(url, room)
    names = sorted(SHARDS)
    first = cache.mirror.hold(names[0])
    cache.mirror.ensure(names[1]), cache.mirror.ensure(names[2])
    assert first.exists()
    assert not (cache.folder / names[1]).exists()
    cache.mirror.hold(names[2])
    with pytest.raises(OptionError, match=r"cache_limit: expected .* for what is in use"):
        cache.mirror.ensure(names[1])
    cache.mirror.release(names[0])
    cache.mirror.ensure(names[1])
    assert not first.exists()


def test_nothing_is_removed_that_the_store_does_not_have(fake, bucket, url, tmp_path):
    room = Room(tmp_path / "room", opening_bytes(fake) + sum(shard_bytes(fake)[:2]))
    first = ShardCache(url, room)
    kept = first.mirror.ensure("part-00000.arrow")
    first.mirror.ensure("part-00001.arrow")
    room.knows(first.folder, {name: size for name, size in first.mirror.sizes.items() if name != "part-00000.arrow"})
    first.mirror.ensure("part-00002.arrow")
    assert kept.exists()
    outside = tmp_path / "room" / "part-00009.arrow"
    folder = tmp_path / "room" / "mine"
    folder.mkdir()
    theirs = [outside, folder / "part-00000.arrow", folder / "download.part"]
    for path in theirs:
        path.write_bytes(bytes(10**6))
    first.mirror.ensure("part-00001.arrow")
    assert all(path.exists() for path in theirs), "nor are they counted"


def test_the_limit_is_for_all_caches_of_the_folder(fake, bucket, tmp_path):
    other = make_cache(tmp_path / "other", seed=1)
    urls = bucket.upload(fake.folder, "one"), bucket.upload(other.folder, "two")
    limit = 2 * opening_bytes(fake) + sum(shard_bytes(fake)) + 400
    first = ShardCache(urls[0], Room(tmp_path / "room", limit))
    read_all(first)
    room = Room(tmp_path / "room", limit)
    same(read_all(ShardCache(urls[1], room)), read_all(ShardCache(other.folder)))
    assert used(room) <= limit
    assert len(list(first.folder.glob("part-*.arrow"))) < 3


def test_nothing_is_removed_of_another_cache_whose_store_does_not_answer(fake, bucket, url, tmp_path, monkeypatch):
    first, other = ShardCache(url, Room(tmp_path / "room", 10**9)), make_cache(tmp_path / "other", seed=1)
    read_all(first)
    room = Room(tmp_path / "room", used(first.mirror.room) + opening_bytes(other) + 400)
    second = ShardCache(bucket.upload(other.folder, "two"), room)

    def silent(place, patience):
        assert str(place) == url and patience.tries == 1, "others wait for the room meanwhile"
        raise TransferFailed("no answer")

    monkeypatch.setattr(room_module, "store_of", silent)
    with pytest.raises(OptionError, match=r"cache_limit: expected .* for what is in use"):
        read_all(second)
    assert len(list(first.folder.glob("part-*.arrow"))) == 3


def test_what_a_killed_process_left_does_not_block_the_next(fake, bucket, url, tmp_path):
    size = max(shard_bytes(fake))
    room = Room(tmp_path / "room", opening_bytes(fake) + size + 400)
    cache = ShardCache(url, room)
    for name in [*SHARDS, "part-00009.arrow"]:
        (cache.folder / f"{name}.part").write_bytes(bytes(size // 2))
    (room.folder / ".used").unlink()
    expected = read_all(ShardCache(fake.folder))
    for row in range(len(cache)):
        same([flat(cache[row])], [expected[row]])
        assert used(room) <= room.limit
    assert not list(cache.folder.glob("part-0000[012].arrow.part"))


def test_a_cache_without_a_limit_keeps_its_copies_from_all_others_as_long_as_it_is_open(fake, bucket, url, tmp_path):
    kept = ShardCache(url, Room(tmp_path / "room"))
    read_all(kept)
    folder = kept.folder
    other = make_cache(tmp_path / "other", seed=1)
    room = Room(tmp_path / "room", used(kept.mirror.room) + opening_bytes(other) + 400)
    second = ShardCache(bucket.upload(other.folder, "two"), room)
    with pytest.raises(OptionError, match=r"cache_limit: expected .* for what is in use"):
        read_all(second)
    assert len(list(folder.glob("part-*.arrow"))) == 3
    del kept
    gc.collect()
    read_all(second)
    assert len(list(folder.glob("part-*.arrow"))) < 3


def test_processes_of_a_machine_hold_the_same_shard_and_count_one_after_the_other(fake, url, tmp_path):
    cache = ShardCache(url, Room(tmp_path / "room", 10**9))
    with cache.mirror.hold("part-00000.arrow").open() as other, (tmp_path / "room" / ".used").open() as count:
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with cache.mirror.room._counted(), pytest.raises(BlockingIOError):
            fcntl.flock(count, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_a_shard_that_others_remove_before_it_is_held_is_fetched_again(fake, bucket, url, tmp_path, monkeypatch):
    mirror, file = ShardCache(url, Room(tmp_path / "room", 10**9)).mirror, "part-00000.arrow"
    ensure, lock, removals = mirror.ensure, mirror_module.lock, iter([True, False, True, True])

    def removed(path):
        if next(removals, False):
            path.unlink()
        return path

    def locked(descriptor, kind):
        lock(descriptor, kind)
        removed(mirror.folder / file) if kind == fcntl.LOCK_SH else None

    monkeypatch.setattr(mirror, "ensure", lambda file: removed(ensure(file)))
    monkeypatch.setattr(mirror_module, "lock", locked)
    assert mirror.hold(file).exists() and next(removals, None) is None
    assert bucket.proxy.count("GET")[file] == 4


def test_a_small_file_that_is_not_as_long_as_it_was_listed_is_damaged(fake, bucket):
    url = bucket.upload(fake.folder, "cache")
    mirror = ShardCache(url).mirror
    ObjectStore(parse_url(url)).put("index.arrow", b"short", create=False)
    with pytest.raises(CacheDamaged, match=r"cache/index.arrow: expected \d+ bytes, got 5, twice"):
        mirror.ensure("index.arrow")


def test_a_file_system_without_locks_is_told_in_one_line(tmp_path, monkeypatch):
    def flock(descriptor, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OptionError, match=r"^cache_dir: expected a file system .* with locks, got No locks available$"):
        room_module.lock(0, fcntl.LOCK_EX)


def test_a_file_that_came_anew_while_the_old_one_was_locked_is_not_removed(tmp_path, monkeypatch):
    path = tmp_path / "part-00000.arrow"
    path.write_bytes(b"old")
    plain = room_module.lock

    def lock(descriptor, kind):
        plain(descriptor, kind)
        path.unlink()
        path.write_bytes(b"new")

    monkeypatch.setattr(room_module, "lock", lock)
    assert not room_module.remove_free(path) and path.read_bytes() == b"new"
    assert not room_module.remove_free(tmp_path / "gone")


def test_a_full_disk_ends_with_one_line(fake, bucket, url, tmp_path, monkeypatch):
    cache = ShardCache(url, Room(tmp_path / "room"))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OptionError, match=r"cache_dir: expected [\d,]+ free bytes in .*, found a full disk"):
        read_all(cache)
    monkeypatch.undo()
    assert not list(cache.folder.glob("*.part"))
    assert counted(cache.mirror.room) == used(cache.mirror.room)


# Data


ROWS = [{"prompt": f"say {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(3)]


def put_data(bucket, name, content):
    ObjectStore(parse_url(bucket.url("data"))).put(name, content, create=False)
    return bucket.url("data", name)


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_a_file_of_data_at_a_url_is_read_as_a_local_one(bucket):
    url = put_data(bucket, "pairs.jsonl", lines(ROWS))
    bucket.proxy.forget()
    for _ in range(2):
        assert list(read_rows(url)) == [(f"pairs.jsonl line {i + 1}", row) for i, row in enumerate(ROWS)]
    assert bucket.proxy.count("GET") == {"pairs.jsonl": 1}
    assert Data.of(url).places == url


def test_a_file_of_data_stays_as_long_as_it_is_read_and_a_bucket_is_no_file(bucket, tmp_path):
    room = Room(tmp_path / "room", 10**9)
    mirror = fetch_file(put_data(bucket, "pairs.jsonl", lines(ROWS)), room)
    assert not room_module.remove_free(mirror.folder / "pairs.jsonl")
    with pytest.raises(OptionError, match=r"expected the URL of a file, got that of a whole bucket$"):
        fetch_file("s3://bucket", room)


def test_another_content_under_the_url_of_data_is_fetched_anew(bucket):
    url = put_data(bucket, "pairs.jsonl", lines(ROWS))
    assert len(list(read_rows(url))) == 3
    put_data(bucket, "pairs.jsonl", lines(ROWS[::-1]))  # as many bytes
    assert [row for _, row in read_rows(url)] == ROWS[::-1]


def test_data_that_cannot_be_read_is_named_by_its_url(bucket, tmp_path):
    with pytest.raises(DataError, match=r"s3://.*/data/pairs: expected a name that ends in"):
        list(read_rows(bucket.url("data", "pairs")))
    with pytest.raises(CacheMissing, match=r"s3://.*/data/pairs.jsonl: expected an object, found none"):
        list(read_rows(bucket.url("data", "pairs.jsonl")))
    with pytest.raises(DataError, match="expected split train"):
        list(read_rows(bucket.url("data", "pairs.jsonl"), "test"))
    url = put_data(bucket, "pairs.json", b"[1")
    with pytest.raises(DataError, match=r"^pairs.json: expected") as error:
        list(read_rows(url))
    assert str(tmp_path) not in str(error.value)
