"""A build whose --out is a URL: every file is put once, whole and only if its name is free; the manifest comes last."""

import contextlib
import pickle

import pytest
from conftest import build_options
from hub_stand_in import HubStandIn, _answer
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError
from tiny import make_pairs, write_jsonl

from precompute.build.build import build
from precompute.build.work import shard_work
from precompute.rollout.options import RolloutOptions
from shards import ShardCache
from shards.cli.space import require_here
from shards.copy.folder import FolderStore
from shards.errors import AlignDistilError, CacheConflict, CacheMissing, OptionError, TransferFailed
from shards.format.manifest import MANIFEST_FILE, PLAN_FILE
from shards.places.hub import HubStore
from shards.places.objects import ObjectStore
from shards.places.out import Out, open_out
from shards.places.publisher import ATTEMPTS, Publisher, bring
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
    assert staged(options) == [], "not even the manifest that was looked at"
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

    def read_back(self, *args, **given):
        most.append(len(shards(staged(options))))
        plain(self, *args, **given)

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


def test_content_that_differs_in_its_last_byte_is_another(tmp_path, monkeypatch):
    monkeypatch.setattr("shards.places.publisher.PIECE_BYTES", 4)
    store, mine = FolderStore(tmp_path / "store"), tmp_path / "x"
    store.folder.mkdir()
    store.put("x", b"01234567")
    mine.write_bytes(b"01234567")
    Publisher(store).publish("x", mine)
    mine.write_bytes(b"01234568")
    with pytest.raises(CacheConflict, match=r"store/x: expected none, or one with the same 8 bytes"):
        Publisher(store).publish("x", mine)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["x"]


def test_a_file_that_is_brought_appears_when_it_is_whole(tmp_path):
    class Broken(FolderStore):
        def fetch(self, file, path):
            path.write_bytes(b"half")
            assert not (tmp_path / "x").exists()
            if file == "broken":
                raise TransferFailed("a broken connection")

    bring(Broken(tmp_path), "good", tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    (tmp_path / "x").unlink()
    with pytest.raises(TransferFailed):
        bring(Broken(tmp_path), "broken", tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_url_has_a_staging_folder_of_its_own_that_no_message_names(bucket, tmp_path):
    out, other = (open_out(bucket.url(name), str(tmp_path)) for name in ("one", "two"))
    here = open_out(str(tmp_path / "here"))
    assert out.folder != other.folder and (out.option, here.option) == ("cache_dir", "out")
    assert out.said(f"{out.folder}/x is full") == f"{out.name}/x is full"
    for raised, told in ((f"{out.folder}/x: expected", f"^{out.name}/x: expected$"), ("plain", "^plain$")):
        with pytest.raises(CacheConflict, match=told), out.named():
            raise CacheConflict(raised)
    # of ten shards of a URL two are staged at a time
    assert (out.at_once(100.0, 10, 2), out.at_once(100.0, 1, 2), here.at_once(100.0, 10, 2)) == (20.0, 100.0, 100.0)


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


def test_all_reads_of_the_hub_are_of_one_commit_until_the_newest_is_asked_for(hub, tmp_path):
    store = hub_store(hub)
    hub_store(hub).commit({"a": b"old"})
    assert store.sizes() == {"a": 3}
    hub_store(hub).commit({"a": b"newer", "b": b""})
    assert store.sizes() == {"a": 3} and store.read("a") == b"old"
    assert store.newest() == {"a": 5, "b": 0} and store.read("a") == b"newer"
    (tmp_path / "a").write_bytes(b"something longer")
    store.fetch("a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"newer"
    with pytest.raises(CacheMissing, match=r"^hf://datasets/me/cache/sub/c: expected a file, found none$"):
        store.read("c")


@pytest.mark.parametrize(
    ("kind", "message", "told"),
    [
        (
            HfHubHTTPError,
            "403 for url 'https://cdn/x?Signature=hunter2'\nRequest ID",
            "it, got 403 for url 'https://cdn/x'",
        ),
        (GatedRepoError, "hunter2\nmore", "the hub asks for an account that may read it"),
        (RuntimeError, "Data processing error\nmore", "expected the hub to do it, got Data processing error"),
        (OSError, "a broken connection", "expected the hub to do it, got a broken connection"),
    ],
)
def test_an_error_of_the_hub_is_one_line_without_a_signature(hub, monkeypatch, kind, message, told):
    def refuse(*_, **flags):
        raise kind(message, **({"response": _answer(403)} if issubclass(kind, HfHubHTTPError) else {}))

    monkeypatch.setattr(hub, "dataset_info", refuse)
    with pytest.raises(TransferFailed) as caught:
        hub_store(hub).sizes()
    text = str(caught.value)
    assert (
        text.startswith("hf://datasets/me/cache/sub: ") and told in text and "hunter2" not in text and "\n" not in text
    )


def test_shards_are_committed_in_time(hub, tmp_path):
    publisher = Publisher(hub_store(hub), seconds=0)
    (tmp_path / "part-0.arrow").write_bytes(b"0")
    publisher.publish("part-0.arrow", tmp_path / "part-0.arrow", drop=True)
    assert hub.files("me/cache")["sub/part-0.arrow"] == b"0" and not (tmp_path / "part-0.arrow").exists()


@pytest.mark.parametrize(("bound", "value"), [("MOST_FILES", 2), ("MOST_BYTES", 7)])
def test_files_are_committed_when_they_are_many_or_large(hub, tmp_path, monkeypatch, bound, value):
    monkeypatch.setattr(f"shards.places.publisher.{bound}", value)
    publisher = Publisher(hub_store(hub), seconds=1000)
    for number in range(2):
        assert "me/cache" not in hub.commits
        (tmp_path / f"{number}").write_bytes(b"four")
        publisher.publish(f"{number}", tmp_path / f"{number}")
    assert set(hub.files("me/cache")) == {".gitattributes", "sub/0", "sub/1"}


def test_files_that_wait_are_committed_also_when_the_last_one_was_there(hub, tmp_path):
    for name in ("part-0.arrow", "manifest.json"):
        (tmp_path / name).write_bytes(b"mine")
    hub_store(hub).commit({"manifest.json": b"mine"})
    publisher = Publisher(hub_store(hub), seconds=1000)
    publisher.publish("part-0.arrow", tmp_path / "part-0.arrow")
    publisher.publish("manifest.json", tmp_path / "manifest.json", last=True)
    assert hub.files("me/cache")["sub/part-0.arrow"] == b"mine"


def test_a_publisher_goes_to_another_process_as_it_is_and_not_with_files_that_wait(tmp_path):
    publisher = Publisher(HubStore(url=parse_url("hf://datasets/me/cache"), api="api"), seconds=7)
    assert pickle.loads(pickle.dumps(publisher)).seconds == 7
    (tmp_path / "x").touch()
    publisher.publish("x", tmp_path / "x")
    with pytest.raises(AssertionError, match="files wait"):
        pickle.dumps(publisher)


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
