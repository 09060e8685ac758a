"""Commands on caches in an object store: the same results as on a folder, from shards that arrive once."""

import subprocess
import sys
import time

import pytest
from fake_cache import make_cache

from shards import ShardCache
from shards.errors import CacheConflict, CacheMissing, OptionError
from shards.inspect.__main__ import main as inspect
from shards.learn.__main__ import main as learn
from shards.pipeline.record import Record
from shards.pipeline.step import Step
from shards.places.objects import ObjectStore
from shards.places.url import parse_url
from shards.spread import FEW_SHARDS, spread, spread_in_few
from shards.verify.__main__ import main as verify
from student.options import DistillArguments
from student.train.__main__ import train


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("fake") / "cache")


@pytest.fixture
def url(fake, bucket):
    return bucket.upload(fake.folder, "cache")


def printed(capsys, command, *arguments):
    """What a command prints on stdout, or the line with which it ends."""
    capsys.readouterr()
    try:
        command([str(argument) for argument in arguments])
    except SystemExit as error:
        return capsys.readouterr().out + f"exit code {error.code}\n"
    return capsys.readouterr().out


def test_verify_fetches_every_file_even_where_copies_are(fake, url, bucket, capsys):
    assert printed(capsys, verify, url) == printed(capsys, verify, fake.folder)
    bucket.proxy.forget()
    printed(capsys, verify, url)
    shards = {name: count for name, count in bucket.proxy.count("GET").items() if name.startswith("part-")}
    assert shards == {"part-00000.arrow": 1, "part-00001.arrow": 1, "part-00002.arrow": 1}


def test_verify_works_under_a_limit_of_one_shard(url, capsys, tmp_path):
    with pytest.raises(OptionError, match="cache_limit: expected") as error:
        verify([url, "--cache_dir", str(tmp_path / "room"), "--cache_limit", "1000"])
    needed = str(error.value).split()[2].replace(",", "")
    flags = ("--cache_dir", tmp_path / "room", "--cache_limit", needed)
    assert "all checks hold" in printed(capsys, verify, url, *flags)
    assert len(list((tmp_path / "room").rglob("part-*"))) < 3


def test_verify_names_the_faults_of_a_store_by_url(fake, url, bucket, capsys, tmp_path):
    printed(capsys, verify, url)
    store = ObjectStore(parse_url(url))
    content = bytearray((fake.folder / "part-00001.arrow").read_bytes())
    content[len(content) // 2] ^= 1
    store.put("part-00001.arrow", bytes(content), create=False)
    store.put("part-00009.arrow", b"stray")
    store.put("vocabulary.json", b"{}", create=False)
    text = printed(capsys, verify, url)
    assert text.endswith("exit code 1\n")
    for fault in (
        "part-00001.arrow: expected sha256",
        "part-00009.arrow: expected the manifest's",
        "vocabulary.json: ",
    ):
        assert f"{url}/{fault}" in text
    assert str(tmp_path) not in text


def test_verify_finds_a_missing_shard_and_a_missing_cache(fake, bucket, capsys):
    store = ObjectStore(parse_url(bucket.url("holes")))
    for path in fake.folder.iterdir():
        if path.name != "part-00001.arrow":
            store.put(path.name, path)
    text = printed(capsys, verify, bucket.url("holes"))
    assert f"{bucket.url('holes')}/part-00001.arrow: expected an object, found none" in text
    assert "expected a cache, found no manifest.json" in printed(capsys, verify, bucket.url("nothing"))


def test_inspect_and_learn_print_of_a_url_what_they_print_of_a_folder(fake, url, capsys):
    for command, flags in ((inspect, ()), (inspect, ("--row", 3)), (learn, ("--held_out", 0.5))):
        assert printed(capsys, command, url, *flags) == printed(capsys, command, fake.folder, *flags)


def test_a_sample_of_a_store_needs_few_shards_and_a_sample_of_a_folder_all():
    ends = [7 * (shard + 1) for shard in range(1000)]
    rows = spread_in_few(ends, 200)
    assert len({row // 7 for row in rows}) == FEW_SHARDS and {0, 999} < {row // 7 for row in rows}
    assert rows == sorted(set(rows)) and len(rows) == 7 * FEW_SHARDS
    assert len(spread_in_few([700 * end for end in ends], 200)) == 200
    assert spread_in_few(ends[:FEW_SHARDS], 20) == spread(ends[FEW_SHARDS - 1], 20)


def test_inspect_fetches_few_of_many_shards(bucket, tmp_path, capsys):
    many = make_cache(tmp_path / "many", pairs=6 * FEW_SHARDS, rows_per_shard=4)
    url = bucket.upload(many.folder, "many")
    bucket.proxy.forget()
    printed(capsys, inspect, url)
    fetched = [name for name in bucket.proxy.count("GET") if name.startswith("part-")]
    assert len(fetched) == FEW_SHARDS < len(list(many.folder.glob("part-*")))


def test_inspect_shows_a_build_that_was_begun(fake, bucket, capsys):
    store = ObjectStore(parse_url(bucket.url("begun")))
    for name in ("plan.json", "provenance.json", "part-00000.arrow"):
        store.put(name, fake.folder / name)
    with pytest.raises(CacheMissing, match=r"begun: expected a finished cache, found a build with 1 of 3 shards done"):
        inspect([bucket.url("begun")])
    assert "preferences.jsonl" in capsys.readouterr().out


def test_a_student_learns_from_a_url_what_it_learns_from_a_folder(sparse_cache, bucket, trio_folders, tmp_path, capsys):
    url = bucket.upload(sparse_cache.folder, "sparse")
    given = {"model": str(trio_folders["reference"]), "train_on": "both", "global_batch_size": 4}
    given |= {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "warmup_steps": 0}
    given |= {"per_device_train_batch_size": 2, "num_train_epochs": 2, "eval_strategy": "no", "learning_rate": 1e-3}
    here, there = (
        train(DistillArguments(output_dir=str(tmp_path / name), shards=[str(place)], eval_shards=[str(place)], **given))
        for name, place in (("here", sparse_cache.folder), ("there", url))
    )
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in (here, there)]
    assert losses[0] == losses[1]
    shards = {name: count for name, count in bucket.proxy.count("GET").items() if name.startswith("part-")}
    assert shards == dict.fromkeys((entry.file for entry in sparse_cache.manifest.entries), 1)
    assert f"(both) from {url}" in capsys.readouterr().out


# Several processes


READ = "import sys; from shards import ShardCache; c = ShardCache(sys.argv[1]); [c[int(row)] for row in sys.argv[2:]]"


def reading(url, *rows):
    """A process of its own that reads some rows."""
    return subprocess.Popen([sys.executable, "-c", READ, url, *map(str, rows)])


def test_two_processes_fetch_each_shard_once(url, bucket):
    both = [reading(url, *range(10)) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    shards = {name: count for name, count in bucket.proxy.count("GET").items() if name.startswith("part-")}
    assert shards == {"part-00000.arrow": 1, "part-00001.arrow": 1, "part-00002.arrow": 1}


def test_a_process_that_is_killed_in_a_download_does_not_block_the_next(fake, url, bucket, tmp_path):
    bucket.proxy.fail("stall", key="part-00001.arrow")
    process = reading(url, 5)
    deadline = time.monotonic() + 60
    while bucket.proxy.count("GET")["part-00001.arrow"] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait(60)
    assert list((tmp_path / "mirror").rglob("part-00001.arrow.part"))
    cache = ShardCache(url)
    assert cache[5].sample_id == fake.responses[5].sample_id
    assert not list((tmp_path / "mirror").rglob("*.part"))


def test_a_pipeline_knows_a_cache_at_a_url_by_its_manifest(fake, url, bucket, tmp_path):
    flags = {"shards": (url,), "output_dir": (str(tmp_path / "student"),)}
    step = Step(name="train", module="student.train", launch=(), flags=flags)
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "config.json").write_text("{}")
    Record(tmp_path / "runs").add(step, Record(tmp_path / "runs").inputs(step))
    assert Record(tmp_path / "runs").is_done(step)
    store = ObjectStore(parse_url(url))
    store.put("manifest.json", store.read("manifest.json") + b" ", create=False)
    with pytest.raises(CacheConflict, match=f"{url} is not what it read"):
        Record(tmp_path / "runs").is_done(step)
