"""shards.copy: between folders, buckets and the hub; the manifest last, nothing sent twice, nothing replaced."""

import json
import os
import shutil

import pytest
from fake_cache import make_cache
from faults import set_entry
from hub_stand_in import HubStandIn

from shards import ShardCache
from shards.copy.__main__ import main
from shards.copy.card import _size, card
from shards.copy.destination import Destination
from shards.copy.folder import FolderStore
from shards.errors import CacheConflict, CacheDamaged, CacheMissing, OptionError, TransferFailed
from shards.format.manifest import MANIFEST_FILE, PLAN_FILE, read_manifest
from shards.locks.lock import exclusive
from shards.places.publisher import Publisher
from shards.places.stores import store_of
from shards.places.url import is_url, parse_url
from shards.verify.__main__ import verify

HUB = "hf://datasets/me/cache"
PLACES = ("folder", "bucket", "hub")


@pytest.fixture
def hub(monkeypatch):
    found = HubStandIn()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda **settings: found)
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Five shards."""
    return make_cache(tmp_path_factory.mktemp("cache"), pairs=10).folder


@pytest.fixture
def run(tmp_path):
    """The command, with a folder of its own for what is on its way."""
    return lambda *arguments: main([*map(str, arguments), "--cache_dir", str(tmp_path / "here")])


def files(place):
    if not is_url(str(place)):
        return {path.name: path.read_bytes() for path in place.iterdir()}
    store = store_of(parse_url(place))
    return {name: store.read(name) for name in store.sizes() if name not in ("README.md", ".gitattributes")}


def shards(names):
    return {name for name in names if name.startswith("part-")}


def is_empty(folder):
    return not folder.exists() or not [path for path in folder.rglob("*") if path.is_file()]


def put_order(bucket):
    return [key.rpartition("/")[2] for method, key in bucket.proxy.requests if method == "PUT"]


@pytest.mark.parametrize("destination", PLACES)
@pytest.mark.parametrize("source", PLACES)
def test_a_copy_from_any_place_to_any_other_has_the_same_files(source, destination, cache, bucket, hub, run, tmp_path):
    begin = {"folder": tmp_path / "one", "bucket": bucket.url("one"), "hub": "hf://datasets/me/one"}[source]
    end = {"folder": tmp_path / "two", "bucket": bucket.url("two"), "hub": "hf://datasets/me/two"}[destination]
    run(cache, begin)
    run(begin, end, "--verify", "content")
    assert files(end) == files(cache)
    assert is_empty(tmp_path / "here"), "nothing stays on this machine"
    if destination == "folder":
        assert not list(verify(end))


def test_the_plan_is_put_first_and_the_manifest_last_and_a_repeated_copy_puts_nothing(cache, bucket, run, capsys):
    run(cache, bucket.url("one"))
    order = put_order(bucket)
    assert sorted(order) == sorted(files(cache)) and (order[0], order[-1]) == (PLAN_FILE, MANIFEST_FILE)
    bucket.proxy.forget()
    run(cache, bucket.url("one"))
    assert put_order(bucket) == []
    assert capsys.readouterr().out.endswith("0 shards copied, 0.0 MB, 5 were there; sizes checked\n")


def test_an_interrupted_copy_is_no_cache_and_goes_on(cache, bucket, run):
    bucket.proxy.fail("403", method="PUT", key="part-00003.arrow")
    with pytest.raises(TransferFailed, match=r"part-00003.arrow: expected a whole transfer, got status 403"):
        run(cache, bucket.url("one"), "--jobs", 1)
    with pytest.raises(CacheMissing):
        ShardCache(bucket.url("one"))
    bucket.proxy.forget()
    run(cache, bucket.url("one"))
    *sent, last = put_order(bucket)
    assert last == MANIFEST_FILE and set(sent) <= {"part-00003.arrow", "part-00004.arrow"}
    assert files(bucket.url("one")) == files(cache)


def test_what_a_killed_copy_leaves_in_a_folder_is_no_cache_and_is_removed_next(cache, run, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(self, entry, temporary):
        temporary.write_bytes(b"half")
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("shards.copy.source.Source.shard", killed)
        run(cache, tmp_path / "two")
    left = {path.name for path in (tmp_path / "two").iterdir()}
    assert any(name.endswith(".aligndistil-tmp") for name in left) and not shards(left) and MANIFEST_FILE not in left
    for name in left:  # as of another process
        (tmp_path / "two" / name).rename(tmp_path / "two" / name.replace(str(os.getpid()), "1"))
    with (
        exclusive(tmp_path / "two"),
        pytest.raises(CacheConflict, match="expected no other command at work here, found"),
    ):
        run(cache, tmp_path / "two")
    run(cache, tmp_path / "two")
    assert files(tmp_path / "two") == files(cache)


@pytest.mark.parametrize("destination", PLACES)
def test_a_damaged_source_is_refused_and_gives_no_cache(destination, cache, bucket, hub, run, tmp_path):
    source = shutil.copytree(cache, tmp_path / "one")
    content = bytearray((source / "part-00002.arrow").read_bytes())
    content[100] ^= 1
    (source / "part-00002.arrow").write_bytes(content)
    end = {"folder": tmp_path / "two", "bucket": bucket.url("two"), "hub": HUB}[destination]
    with pytest.raises(CacheDamaged, match=rf"^{source}/part-00002.arrow: expected sha256 \w+, got \w+$"):
        run(source, end)
    assert not {"part-00002.arrow", MANIFEST_FILE} & set(files(end))


def test_a_transfer_that_alters_a_shard_is_repeated(cache, bucket, run, tmp_path):
    run(cache, bucket.url("one"))
    bucket.proxy.fail("altered", key="part-00001.arrow")
    run(bucket.url("one"), tmp_path / "two")
    assert files(tmp_path / "two") == files(cache)


@pytest.mark.parametrize("file", ["plan.json", "index.arrow", "vocabulary.json", "provenance.json", "part-00001.arrow"])
def test_a_source_without_one_of_its_files_is_refused_before_anything_is_written(file, cache, run, tmp_path):
    source = shutil.copytree(cache, tmp_path / "one")
    (source / file).unlink()
    with pytest.raises(CacheMissing, match=rf"^{source}"):
        run(source, tmp_path / "two")
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("file", ["plan.json", "index.arrow", "vocabulary.json"])
def test_a_small_file_of_another_cache_is_refused_before_anything_is_written(file, cache, run, tmp_path):
    source = shutil.copytree(cache, tmp_path / "one")
    shutil.copy(make_cache(tmp_path / "other", pairs=10, vocabulary_size=25, seed=1).folder / file, source / file)
    with pytest.raises(CacheDamaged, match=rf"^{source}/{file}: .*expected"):
        run(source, tmp_path / "two")
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("file", ["manifest.json", "plan.json", "vocabulary.json", "provenance.json"])
def test_a_small_file_with_a_flipped_bit_is_refused_before_anything_is_written(file, cache, run, tmp_path):
    """In a number or a name: all of them still read as JSON."""
    source = shutil.copytree(cache, tmp_path / "one")
    content = (source / file).read_bytes()
    (source / file).write_bytes(content.replace(b"e", b"d", 1))
    with pytest.raises(CacheDamaged, match=rf"^{source}/{file}: .*expected"):
        run(source, tmp_path / "two")
    assert not (tmp_path / "two").exists()


def test_a_begun_build_and_an_empty_place_are_no_source(cache, bucket, run, tmp_path):
    source = shutil.copytree(cache, tmp_path / "one")
    (source / MANIFEST_FILE).unlink()
    with pytest.raises(CacheMissing, match=rf"^{source}: expected a finished cache, found a build that was begun"):
        run(source, tmp_path / "two")
    with pytest.raises(CacheMissing, match=rf"^{bucket.url('none')}: expected a cache, found no manifest.json"):
        run(bucket.url("none"), tmp_path / "two")


@pytest.mark.parametrize("destination", PLACES)
def test_a_place_with_another_cache_is_refused_and_kept(destination, cache, bucket, hub, run, tmp_path):
    other = make_cache(tmp_path / "other", pairs=10, seed=1).folder
    end = {"folder": tmp_path / "two", "bucket": bucket.url("two"), "hub": HUB}[destination]
    run(other, end)
    with pytest.raises(CacheConflict, match=rf"^{end}: holds another cache, positions: expected "):
        run(cache, end)
    assert files(end) == files(other)


def test_a_begun_copy_and_a_finished_one_of_another_content_are_refused(cache, run, tmp_path):
    begun, finished = tmp_path / "two", shutil.copytree(cache, tmp_path / "three")
    begun.mkdir()
    shutil.copy(make_cache(tmp_path / "other", pairs=10, seed=1).folder / PLAN_FILE, begun)
    set_entry(finished, 0, sha256="0" * 64)
    for place in (begun, finished):
        before = files(place)
        with pytest.raises(CacheConflict, match=rf"^{place}: holds another cache, "):
            run(cache, place)
        assert files(place) == before


def test_a_shard_that_is_not_there_in_the_end_is_missing_and_there_is_no_manifest(cache, run, tmp_path, monkeypatch):
    plain = Publisher.publish

    def publish(self, file, path, **flags):
        if file != "part-00002.arrow":
            plain(self, file, path, **flags)

    monkeypatch.setattr(Publisher, "publish", publish)
    with pytest.raises(CacheMissing, match=r"two/part-00002.arrow: expected a shard of \d+ bytes"):
        run(cache, tmp_path / "two")
    assert not (tmp_path / "two" / MANIFEST_FILE).exists()


def test_shards_without_a_plan_are_refused(cache, bucket, run):
    store_of(parse_url(bucket.url("two"))).put("part-00000.arrow", b"mine")
    with pytest.raises(CacheConflict, match=r"expected no shards without a plan.json, found part-00000.arrow"):
        run(cache, bucket.url("two"))


@pytest.mark.parametrize("file", ["part-00002.arrow", "vocabulary.json", "index.arrow"])
def test_content_that_was_altered_at_the_destination_is_found_by_reading_it_again(cache, run, tmp_path, file):
    end = shutil.copytree(cache, tmp_path / "two")
    content = bytearray((end / file).read_bytes())
    content[100] ^= 1
    (end / file).write_bytes(content)
    run(cache, end)
    with pytest.raises(CacheDamaged, match=rf"^{end}/{file}: expected sha256"):
        run(cache, end, "--verify", "content")


def test_a_shard_of_another_size_at_the_destination_is_refused(cache, run, tmp_path):
    end = shutil.copytree(cache, tmp_path / "two")
    (end / "part-00002.arrow").write_bytes(b"half")
    with pytest.raises(CacheConflict, match=rf"^{end}/part-00002.arrow: expected nothing, or \d+ bytes, got 4$"):
        run(cache, end)


def test_a_file_of_a_folder_is_never_replaced_even_if_it_comes_between_look_and_write(tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.exists", lambda path: False)
    (tmp_path / "a").write_bytes(b"mine")
    (tmp_path / ".a.tmp").write_bytes(b"other")
    assert not FolderStore(tmp_path).put("a", tmp_path / ".a.tmp")
    assert (tmp_path / "a").read_bytes() == b"mine"


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_folder_after(tmp_path, monkeypatch):
    flushed, target = [], tmp_path / "a"
    monkeypatch.setattr("shards.copy.folder.flush", lambda path: flushed.append((path == tmp_path, target.exists())))
    assert FolderStore(tmp_path).put("a", b"mine")
    assert flushed == [(False, False), (True, True)] and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_jobs_are_one_or_more(cache, run, tmp_path):
    with pytest.raises(OptionError, match=r"^jobs: expected 1 or more, got 0"):
        run(cache, tmp_path / "two", "--jobs", 0)


# ---- the hub


def test_a_copy_to_the_hub_is_two_commits_the_second_with_manifest_and_card(cache, hub, run):
    run(cache, HUB)
    _, first, second, third = hub.commits["me/cache"]
    assert set(first) == {".gitattributes", PLAN_FILE}
    assert MANIFEST_FILE not in second and shards(second) == shards(files(cache))
    assert set(third) - set(second) == {MANIFEST_FILE, "README.md"}
    assert hub.private == {"me/cache": True}


def test_a_repository_is_public_only_when_asked(cache, hub, run):
    run(cache, HUB, "--public", "--license", "apache-2.0")
    assert hub.private == {"me/cache": False}
    assert b"license: apache-2.0\n" in hub.files("me/cache")["README.md"]


def test_what_the_hub_says_about_a_shard_is_compared_with_the_manifest(cache, hub, run):
    run(cache, HUB)
    hub.commits["me/cache"][-1]["part-00001.arrow"] = bytes(len(hub.files("me/cache")["part-00001.arrow"]))
    with pytest.raises(CacheDamaged, match=rf"^{HUB}/part-00001.arrow: expected sha256"):
        run(cache, HUB)


def test_a_card_that_is_there_is_kept(cache, hub, run, capsys):
    hub.create_repo("me/cache", repo_type="dataset", private=True, exist_ok=True)
    hub.files("me/cache")["README.md"] = b"mine"
    run(cache, HUB)
    assert hub.files("me/cache")["README.md"] == b"mine"
    assert "README.md: kept as it is" in capsys.readouterr().err


@pytest.mark.parametrize("inside", ["", "/a/b"])
def test_datasets_finds_the_shards_by_the_card(inside, cache, hub, run, tmp_path):
    datasets = pytest.importorskip("datasets")
    run(cache, HUB + inside)
    for name, content in hub.files("me/cache").items():
        path = tmp_path / "repository" / name.removeprefix("a/b/" if name.endswith("README.md") else "")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    found = datasets.load_dataset(str(tmp_path / "repository"), split="train", cache_dir=str(tmp_path / "arrow"))
    rows = ShardCache(cache)
    assert len(found) == len(rows) and found[3]["sample_id"] == rows[3].sample_id


def test_a_card_names_no_folder_of_anybody(cache):
    text = card(read_manifest(cache), cache, parse_url(HUB), None)
    assert "/models/" not in text and "preferences.jsonl" not in text
    provenance = json.loads((cache / "provenance.json").read_text())
    assert provenance["models"]["dpo"] == "/models/dpo"


def test_the_card_has_the_hubs_word_for_a_number_of_rows():
    words = [_size(rows) for rows in (0, 999, 1000, 9999, 10_000, 10**8, 10**12)]
    assert words == ["n<1K", "n<1K", "1K<n<10K", "1K<n<10K", "10K<n<100K", "100M<n<1B", "100M<n<1B"]


def test_a_file_that_a_folder_does_not_have_is_missing(tmp_path):
    with pytest.raises(CacheMissing, match=rf"^{tmp_path}/x: expected a file, found none$"):
        FolderStore(tmp_path).read("x")


@pytest.mark.parametrize("url", ["hf://models/me/one", "hf://datasets/one", "hf://datasets/me/one@a@b"])
def test_another_hub_url_is_refused_with_the_form_that_is_expected(url, cache, run):
    with pytest.raises(OptionError, match=r"expected .*hf://datasets/OWNER/NAME\[@REVISION\]\[/PATH\]"):
        run(cache, url)


def test_a_destination_without_links_still_replaces_nothing(cache, run, tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError

    monkeypatch.setattr("os.link", no_links)
    run(cache, tmp_path / "two")
    assert files(tmp_path / "two") == files(cache)
    store = FolderStore(tmp_path / "two")
    assert not Destination(publisher=Publisher(store), work=tmp_path).store.put(PLAN_FILE, b"other")
    looks = iter([False])  # it comes between look and write
    monkeypatch.setattr("pathlib.Path.exists", lambda path: next(looks, True))
    assert not store.put(PLAN_FILE, b"other") and files(tmp_path / "two") == files(cache)
