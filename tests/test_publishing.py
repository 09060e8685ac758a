"""A build whose --out is a URL: every file is put once, whole and only if its name is free; the manifest comes last."""

import pickle

import pytest
from bucket_server import bucket_server
from conftest import build_options
from hub_stand_in import HubStandIn
from tiny import make_pairs, write_jsonl

from precompute.build import shard_work
from precompute.build.build import build
from shards.errors import CacheConflict, CacheMissing, TransferFailed
from shards.format.manifest import MANIFEST_FILE, PLAN_FILE
from shards.places.hub import HubStore
from shards.places.out import Out, open_out
from shards.places.publisher import ATTEMPTS, Publisher
from shards.places.url import parse_url

URL = "s3://bucket/caches/one"
SETTINGS = {"responses": "both", "top_k": 5, "max_top_k": 12, "tokens_per_shard": 15}
SMALL = {"plan.json", "index.arrow", "vocabulary.json", "provenance.json", "manifest.json"}


@pytest.fixture
def bucket(monkeypatch):
    pytest.importorskip("obstore")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with bucket_server(monkeypatch) as found:
        yield found


@pytest.fixture(scope="module")
def local(trio_folders, pairs_file, tmp_path_factory):
    """The files of the same build into a folder."""
    folder = tmp_path_factory.mktemp("local") / "cache"
    build(build_options(trio_folders, pairs_file, folder, **SETTINGS))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def options(trio_folders, pairs_file, tmp_path):
    return build_options(trio_folders, pairs_file, URL, cache_dir=str(tmp_path / "here"), **SETTINGS)


def staged(options):
    folder = open_out(options.out, options.cache_dir).folder
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def shards(names):
    return {name for name in names if name.startswith("part-")}


class Killed(BaseException):
    """As a signal: nothing catches it."""


def kill_at(monkeypatch, number):
    """End the build when it publishes its shard of this number."""
    plain = Out.publish

    def publish(self, file, **flags):
        if file == f"part-{number:05d}.arrow":
            raise Killed
        plain(self, file, **flags)

    monkeypatch.setattr(Out, "publish", publish)


def test_a_build_puts_each_file_once_and_the_manifest_last(bucket, options, local):
    build(options)
    assert bucket.objects("caches/one") == local
    assert bucket.puts() == dict.fromkeys(local, 1)
    order = [key.rpartition("/")[2] for method, key in bucket.requests if method == "PUT"]
    assert order[-1] == MANIFEST_FILE and order.index(PLAN_FILE) == 3 and not shards(order[:4])
    assert staged(options) == [], "nothing stays on this machine"


def test_a_finished_cache_is_recognised_without_a_put(bucket, options, capsys):
    build(options)
    bucket.requests.clear()
    build(options)
    assert bucket.puts() == {}
    assert capsys.readouterr().out.endswith(f"{URL}: already built from the same inputs, nothing to do\n")


def test_an_interrupted_build_goes_on_and_gives_the_same_objects(bucket, options, local, monkeypatch):
    kill_at(monkeypatch, 3)
    with pytest.raises(Killed):
        build(options)
    there = bucket.objects("caches/one")
    assert shards(there) == {f"part-{i:05d}.arrow" for i in range(3)} and MANIFEST_FILE not in there
    assert "part-00003.arrow" in staged(options), "written, but not published"
    monkeypatch.undo()
    with bucket_env(monkeypatch, bucket):
        build(options)
    assert bucket.objects("caches/one") == local
    assert {file: count for file, count in bucket.puts().items() if count != 1} == {"index.arrow": 2}


def test_the_staging_folder_does_not_grow_with_the_shards(bucket, options, monkeypatch):
    kill_at(monkeypatch, 5)
    with pytest.raises(Killed):
        build(options)
    monkeypatch.undo()
    most, plain = [], shard_work.Findings.read_back

    def read_back(self, *args):
        most.append(len(shards(staged(options))))
        plain(self, *args)

    with bucket_env(monkeypatch, bucket):
        monkeypatch.setattr(shard_work.Findings, "read_back", read_back)
        build(options)
    assert len(most) > 6 and max(most) == 1


def test_a_put_whose_answer_is_lost_counts_as_done(bucket, options, local):
    seen = set()
    bucket.answers = lambda method, key: "lost" if method == "PUT" and not (key in seen or seen.add(key)) else None
    build(options)
    assert bucket.objects("caches/one") == local


def test_a_store_that_refuses_gets_one_line_and_holds_nothing_that_is_taken_for_a_cache(bucket, options):
    bucket.answers = lambda method, key: "refused" if method == "PUT" and "part-00002" in key else None
    with pytest.raises(TransferFailed, match=rf"^{URL}/part-00002.arrow: expected a whole transfer, got status 500"):
        build(options)
    there = bucket.objects("caches/one")
    assert shards(there) == {"part-00000.arrow", "part-00001.arrow"} and MANIFEST_FILE not in there


def test_a_store_without_conditional_writes_is_looked_at_before_each(bucket, options, local):
    bucket.answers = lambda method, key: "conditional" if method == "PUT" else None
    build(options)
    assert bucket.objects("caches/one") == local


def test_other_inputs_are_refused_by_the_plan(bucket, options, trio_folders, tmp_path):
    build(options)
    bucket.requests.clear()
    data = write_jsonl(tmp_path / "other.jsonl", make_pairs(12, seed=1))
    other = build_options(trio_folders, data, URL, cache_dir=str(tmp_path / "there"), **SETTINGS)
    with pytest.raises(CacheConflict, match=rf"^{URL}: holds another build, data.rows_sha256: expected "):
        build(other)
    assert bucket.puts() == {}


@pytest.mark.parametrize("file", ["part-00001.arrow", "index.arrow"])
def test_a_file_of_somebody_else_is_refused_and_kept(bucket, options, tmp_path, file):
    store = open_out(URL).publisher.store
    if file.startswith("part"):
        bucket.answers = lambda method, key: store.put(file, b"mine") and None if key.endswith("plan.json") else None
    else:
        store.put(file, b"mine")
    with pytest.raises(CacheConflict, match=rf"^{URL}/{file}: expected no"):
        build(options)
    assert bucket.objects("caches/one")[file] == b"mine"


def test_a_damaged_plan_is_named_by_its_url(bucket, options):
    open_out(URL).publisher.store.put(PLAN_FILE, b"{}")
    with pytest.raises(Exception, match=rf"^{URL}/plan.json: expected"):
        build(options)


def test_a_lost_shard_of_a_finished_cache_is_noticed(bucket, options):
    import boto3

    build(options)
    boto3.client("s3", endpoint_url=bucket.endpoint).delete_object(Bucket="bucket", Key="caches/one/part-00002.arrow")
    with pytest.raises(CacheMissing, match=rf"^{URL}/part-00002.arrow: expected a shard of \d+ bytes, found no file"):
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
    with_plan, with_manifest = hub.commits["me/cache"][1:]
    assert {name.removeprefix("sub/") for name in with_plan} - {".gitattributes"} == SMALL - {MANIFEST_FILE}
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
