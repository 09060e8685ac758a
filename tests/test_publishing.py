"""A build whose --out is a URL: every file is put once, whole and only if its name is free; the manifest comes last."""

import contextlib
import pickle

import pytest
from conftest import build_options
from hub_stand_in import HubStandIn
from tiny import make_pairs, write_jsonl

from precompute.build.build import build
from precompute.build.work import shard_work
from precompute.rollout.options import RolloutOptions
from shards import ShardCache
from shards.cli.space import require_here
from shards.errors import AlignDistilError, CacheConflict, CacheMissing, OptionError, TransferFailed
from shards.format.manifest import MANIFEST_FILE, PLAN_FILE
from shards.places.hub import HubStore
from shards.places.objects import ObjectStore
from shards.places.out import Out, open_out
from shards.places.publisher import ATTEMPTS, Publisher
from shards.places.stores import store_of
from shards.places.url import parse_url

SETTINGS = {"responses": "both", "top_k": 5, "max_top_k": 12, "tokens_per_shard": 15}
SMALL = {"plan.json", "index.arrow", "vocabulary.json", "tokenizer.json", "provenance.json", "manifest.json"}


def contents(bucket):
    """name -> content of the objects of a build."""
    store = store_of(parse_url(bucket.url("one")))
    return {file: store.read(file) for file in store.sizes()}


@pytest.fixture(scope="module")
def local(trio_folders, pairs_file, tmp_path_factory):
    """The files of the same build into a folder."""
    folder = tmp_path_factory.mktemp("local") / "cache"
    build(build_options(trio_folders, pairs_file, folder, **SETTINGS))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def options(bucket, trio_folders, pairs_file, tmp_path):
    return build_options(trio_folders, pairs_file, bucket.url("one"), cache_dir=str(tmp_path / "here"), **SETTINGS)


def staged(options):
    folder = open_out(options.out, options.cache_dir).folder
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def shards(names):
    return {name for name in names if name.startswith("part-")}


class Killed(BaseException):
    """As a signal: nothing catches it."""


@contextlib.contextmanager
def killed_at(number):
    """The build ends when it publishes its shard of this number."""
    plain = Out.publish

    def publish(self, file, **flags):
        if file == f"part-{number:05d}.arrow":
            raise Killed
        plain(self, file, **flags)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Out, "publish", publish)
        yield


def test_a_build_puts_each_file_once_and_the_manifest_last(bucket, options, local):
    build(options)
    order = [key.rpartition("/")[2] for method, key in bucket.proxy.requests if method == "PUT"]
    assert sorted(order) == sorted(local)
    assert order[-1] == MANIFEST_FILE and order[4] == PLAN_FILE and not shards(order[:5])
    assert contents(bucket) == local
    assert staged(options) == [], "nothing stays on this machine"


def test_a_finished_cache_is_recognised_without_a_put(bucket, options, capsys):
    build(options)
    bucket.proxy.forget()
    build(options)
    assert not bucket.proxy.count("PUT")
    assert capsys.readouterr().out.endswith(f"{options.out}: already built from the same inputs, nothing to do\n")


def test_an_interrupted_build_goes_on_and_gives_the_same_objects(bucket, options, local):
    with killed_at(3):
        build(options)
    there = contents(bucket)
    assert shards(there) == {f"part-{i:05d}.arrow" for i in range(3)} and MANIFEST_FILE not in there
    assert "part-00003.arrow" in staged(options), "written, but not published"
    build(options)
    assert bucket.proxy.count("PUT") == dict.fromkeys(local, 1) | {"index.arrow": 2}
    assert contents(bucket) == local


def test_the_staging_folder_does_not_grow_with_the_shards(bucket, options, monkeypatch):
    with killed_at(5):
        build(options)
    most, plain = [], shard_work.Findings.read_back

    def read_back(self, *args):
        most.append(len(shards(staged(options))))
        plain(self, *args)

    monkeypatch.setattr(shard_work.Findings, "read_back", read_back)
    build(options)
    assert len(most) > 6 and max(most) == 1


def test_a_put_whose_answer_is_lost_counts_as_done(bucket, options, local):
    for file in local:
        bucket.proxy.fail("lost", method="PUT", key=file)
    build(options)
    assert contents(bucket) == local


def test_a_store_that_fails_gets_one_line_and_holds_nothing_that_is_taken_for_a_cache(bucket, options, local):
    bucket.proxy.fail("500", method="PUT", key="part-00002.arrow", times=99)
    with pytest.raises(
        TransferFailed, match=rf"^{options.out}/part-00002.arrow: expected a whole transfer, got status 500"
    ):
        build(options)
    there = contents(bucket)
    assert shards(there) == {"part-00000.arrow", "part-00001.arrow"} and MANIFEST_FILE not in there
    with pytest.raises(CacheMissing, match="found a build that was begun"):
        ShardCache(options.out)
    bucket.proxy.forget()
    build(options)
    assert contents(bucket) == local


def test_a_store_without_conditional_writes_is_looked_at_before_each(bucket, options, local):
    for file in local:
        bucket.proxy.fail("501", method="PUT", key=file)
    build(options)
    assert contents(bucket) == local


def test_other_inputs_are_refused_by_the_plan(bucket, options, trio_folders, tmp_path):
    build(options)
    bucket.proxy.forget()
    data = write_jsonl(tmp_path / "other.jsonl", make_pairs(12, seed=1))
    other = build_options(trio_folders, data, options.out, cache_dir=str(tmp_path / "there"), **SETTINGS)
    with pytest.raises(CacheConflict, match=rf"^{options.out}: holds another build, data.rows_sha256: expected "):
        build(other)
    assert not bucket.proxy.count("PUT")


@pytest.mark.parametrize("file", ["index.arrow", "part-00001.arrow"])
def test_a_file_of_somebody_else_is_refused_and_kept(bucket, options, monkeypatch, file):
    plain = Out.publish

    def publish(self, published, **flags):
        if published == file:
            store_of(parse_url(options.out)).put(file, b"mine")
        plain(self, published, **flags)

    monkeypatch.setattr(Out, "publish", publish)
    with pytest.raises(CacheConflict, match=rf"^{options.out}/{file}: expected none, or one with the same"):
        build(options)
    assert contents(bucket)[file] == b"mine"


@pytest.mark.parametrize(("file", "kind"), [("index.arrow", CacheConflict), ("part-00000.arrow", CacheConflict)])
def test_files_without_a_plan_are_refused_before_anything_is_put(bucket, options, file, kind):
    store_of(parse_url(options.out)).put(file, b"mine")
    bucket.proxy.forget()
    with pytest.raises(kind, match=rf"^{options.out}"):
        build(options)
    assert not bucket.proxy.count("PUT")


def test_a_damaged_plan_is_named_by_its_url(bucket, options):
    store_of(parse_url(options.out)).put(PLAN_FILE, b"{}")
    with pytest.raises(AlignDistilError, match=rf"^{options.out}/plan.json: expected"):
        build(options)


def test_a_lost_shard_of_a_finished_cache_is_noticed(bucket, options, monkeypatch):
    build(options)
    plain = ObjectStore.sizes
    monkeypatch.setattr(
        ObjectStore, "sizes", lambda self: {f: n for f, n in plain(self).items() if f != "part-00002.arrow"}
    )
    with pytest.raises(CacheMissing, match=rf"^{options.out}/part-00002.arrow: expected a shard of \d+ bytes"):
        build(options)


# ---- the hub


@pytest.fixture
def hub(monkeypatch):
    found = HubStandIn()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda **settings: found)
    return found


def hub_store(hub):
    return HubStore(url=parse_url("hf://datasets/me/cache/sub"))


def test_a_build_to_the_hub_is_a_few_commits_and_the_same_files(hub, options, local):
    options.out = "hf://datasets/me/cache/sub"
    build(options)
    assert {
        name.removeprefix("sub/"): content for name, content in hub.files("me/cache").items() if "sub/" in name
    } == local
    _, with_plan, with_shards, _ = hub.commits["me/cache"]
    assert {name.removeprefix("sub/") for name in with_plan} - {".gitattributes"} == SMALL - {MANIFEST_FILE}
    assert not any(name.endswith(MANIFEST_FILE) for name in with_shards)
    assert hub.private == {"me/cache": True}
    assert staged(options) == []


def test_shards_are_committed_in_time(hub, tmp_path):
    publisher = Publisher(hub_store(hub), seconds=0)
    (tmp_path / "part-0.arrow").write_bytes(b"0")
    publisher.publish("part-0.arrow", tmp_path / "part-0.arrow", drop=True)
    assert hub.files("me/cache")["sub/part-0.arrow"] == b"0" and not (tmp_path / "part-0.arrow").exists()
    pickle.loads(pickle.dumps(Publisher(HubStore(url=parse_url("hf://datasets/me/cache"), api="api"))))


def test_a_staged_shard_stays_until_it_is_committed(hub, tmp_path):
    publisher, path = Publisher(hub_store(hub)), tmp_path / "part-0.arrow"
    path.write_bytes(b"0")
    publisher.publish(path.name, path, drop=True)
    assert path.exists() and "me/cache" not in hub.commits
    publisher.settle()
    assert not path.exists() and hub.files("me/cache")["sub/part-0.arrow"] == b"0"


def test_a_plan_is_committed_only_on_top_of_a_commit_without_one(hub, tmp_path):
    store, path = hub_store(hub), tmp_path / "plan.json"
    path.write_bytes(b"mine")

    def other():
        hub.meanwhile = lambda: None
        hub_store(hub).commit({"plan.json": b"theirs"})

    hub.meanwhile = other
    with pytest.raises(
        CacheConflict, match=r"^hf://datasets/me/cache/sub/plan.json: expected none, or one with the same"
    ):
        Publisher(store).publish("plan.json", path, last=True)
    assert hub.files("me/cache")["sub/plan.json"] == b"theirs"


def test_a_repository_in_which_others_always_commit_is_given_up(hub, tmp_path):
    path, number = tmp_path / "plan.json", iter(range(100))
    path.write_bytes(b"mine")
    hub.meanwhile = lambda: hub.commits["me/cache"].append(hub.files("me/cache") | {f"x{next(number)}": b""})
    with pytest.raises(TransferFailed, match=f"expected to commit plan.json, got .*{ATTEMPTS} tries"):
        Publisher(hub_store(hub)).publish("plan.json", path, last=True)


def test_what_is_no_cache_is_written_to_this_machine_only():
    with pytest.raises(OptionError, match=r"^out: expected a place on this machine, got s3://bucket/one.jsonl; "):
        RolloutOptions(model="m", data="d", out="s3://bucket/one.jsonl")
    with pytest.raises(OptionError, match=r"^out: expected a place on this machine, got s3://bucket/one; "):
        require_here("s3://bucket/one")
