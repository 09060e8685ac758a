"""Two commands on one file or folder: one is refused, and neither damages the other's work."""

import json
import multiprocessing
import os
import time
from functools import partial
from pathlib import Path

import pytest
from conftest import build_options
from test_locks import at_work
from test_rollout import options
from tiny import make_llama, save
from two_ranks import run_ranks

from precompute.build.__main__ import main as build_main
from precompute.build.build import build
from precompute.build.work import models as model_work
from precompute.rollout import __main__ as rollout_module
from precompute.rollout.__main__ import main as rollout_main
from precompute.rollout.__main__ import rollout
from precompute.rollout.sampling import TransformersEngine
from precompute.teachers.__main__ import main as teachers
from shards.copy.__main__ import main as copy
from shards.errors import AlignDistilError, CacheConflict
from shards.format.writer import write_text
from shards.locks.lock import LOCK_FILE, exclusive, exclusive_file
from shards.pipeline.__main__ import main as pipeline
from shards.pipeline.record import Record
from shards.pipeline.step import Step
from shards.places.objects import ObjectStore
from shards.places.out import staging_folder
from shards.places.url import parse_url
from student.train.__main__ import main as train

FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(make_llama(0), tmp_path_factory.mktemp("model") / "reference")


@pytest.fixture
def data(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "the cat"}\n{"prompt": "a dog ran"}\n')
    return tmp_path / "prompts.jsonl"


def in_another_process(action, *arguments):
    process = FORK.Process(target=action, args=arguments)
    process.start()
    return process


def ended_well(process):
    process.join(60)
    return process.exitcode == 0


def sidecar(path):
    return json.loads(path.with_name(f"{path.name}.identity.json").read_text())


# ---- rollouts


def test_a_rollout_that_comes_second_is_refused_at_once_and_harms_nothing(model, data, tmp_path, monkeypatch):
    path, at_work, go_on = tmp_path / "samples.jsonl", FORK.Event(), FORK.Event()
    first, second = (options(model, data, path, seed=seed) for seed in (1, 2))
    with monkeypatch.context() as patch:
        sample = TransformersEngine.sample

        def waiting(engine, requests):
            at_work.set()
            assert go_on.wait(60)
            return sample(engine, requests)

        patch.setattr(TransformersEngine, "sample", waiting)
        process = in_another_process(rollout, first)
        assert at_work.wait(60)
    with monkeypatch.context() as patch:
        patch.setattr(rollout_module, "find_sources", lambda options: pytest.fail("read its inputs"))
        with pytest.raises(CacheConflict, match=rf"samples.jsonl: .* \(process {process.pid} on "):
            rollout(second)
    go_on.set()
    assert ended_well(process)
    assert sidecar(path)["options"]["seed"] == 1
    before = path.read_bytes()
    assert rollout(first) == path  # recognised
    with pytest.raises(CacheConflict, match=r"holds another rollout, options\.seed: expected 1, got 2"):
        rollout(second)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [data.name, path.name, f"{path.name}.identity.json"]


# ---- builds


def test_a_build_that_comes_second_is_refused_while_the_first_loads_its_models(
    trio_folders, pairs_file, tmp_path, monkeypatch
):
    asked = build_options(trio_folders, pairs_file, tmp_path / "out", top_k=5, max_top_k=8)
    load_scorer, refused = model_work.load_scorer, []

    def load(*args):
        monkeypatch.setattr(model_work, "load_scorer", load_scorer)
        with pytest.raises(CacheConflict) as caught:
            build(asked)
        refused.append(str(caught.value))
        return load_scorer(*args)

    monkeypatch.setattr(model_work, "load_scorer", load)
    manifest = build(asked)
    assert len(refused) == 1
    assert refused[0].startswith(f"{tmp_path}/out: expected no other command at work here, found python -")
    assert build(asked) == manifest  # recognised, and by any number at a time:
    with exclusive(tmp_path / "out"):
        assert build(asked) == manifest
    assert not (tmp_path / "out" / LOCK_FILE).exists()


# ---- every command


def command_and_place(name, tmp_path):
    """A command whose inputs are not there, and what it locks."""
    out, nowhere = str(tmp_path / "out"), str(tmp_path / "nowhere")
    models = ["--models", *(f"{role}={nowhere}" for role in ("dpo", "reverse", "reference"))]
    match name:
        case "build":
            return partial(build_main, [*models, "--data", nowhere, "--out", out]), exclusive, tmp_path / "out"
        case "build into a URL":
            staging = staging_folder(parse_url("s3://b/c"), str(tmp_path / "cache"))
            flags = ["--out", "s3://b/c", "--cache_dir", str(tmp_path / "cache")]
            return partial(build_main, [*models, "--data", nowhere, *flags]), exclusive, staging
        case "teachers":
            flags = [
                "--reference",
                nowhere,
                "--data",
                nowhere,
                "--out",
                out,
                "--use_cpu",
                "true",
                "--report_to",
                "none",
            ]
            return partial(teachers, flags), exclusive, tmp_path / "out"
        case "rollout":
            return (
                partial(rollout_main, ["--model", nowhere, "--data", nowhere, "--out", f"{out}.jsonl"]),
                exclusive_file,
                Path(f"{out}.jsonl"),
            )
        case "copy":
            return partial(copy, [nowhere, out]), exclusive, tmp_path / "out"
        case "train":
            flags = ["--shards", nowhere, "--output_dir", out, "--use_cpu", "true", "--report_to", "none"]
            return partial(train, flags), exclusive, tmp_path / "out"
        case "pipeline":
            (tmp_path / "steps.yaml").write_text(
                f"out: {out}\nsteps: [{{name: a, run: precompute.rollout, flags: {{model: m, data: d, out: o}}}}]"
            )
            return partial(pipeline, [str(tmp_path / "steps.yaml")]), exclusive_file, tmp_path / "out" / "steps.yaml"
    raise AssertionError(name)


@pytest.mark.parametrize("name", ["build", "build into a URL", "teachers", "rollout", "copy", "train", "pipeline"])
def test_every_command_that_writes_is_refused_before_it_reads_anything(tmp_path, monkeypatch, name):
    monkeypatch.setattr(ObjectStore, "sizes", lambda store: {})
    command, locked, place = command_and_place(name, tmp_path)
    with at_work(place, locked) as process:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(CacheConflict, match=rf"expected no other command .* \(process {process.pid} on "):
            command()
        assert sorted(tmp_path.rglob("*")) == before
    if name != "pipeline":  # which starts another interpreter
        with pytest.raises(AlignDistilError, match="nowhere"):
            command()
    assert not (tmp_path / "out").exists(), "it has read nothing, and leaves nothing"


def test_all_ranks_of_a_training_end_if_another_command_is_at_work(tmp_path):
    flags = {"shards": "nowhere", "output_dir": str(tmp_path / "out"), "use_cpu": "true", "report_to": "none"}
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    with at_work(tmp_path / "out") as process, pytest.raises(AssertionError) as caught:
        run_ranks("student.train", words, tmp_path)
    assert str(caught.value).count(f"(process {process.pid} on ") == 2


# ---- files that are written whole


def write_often(folder, letter):
    for size in range(1, 60):
        write_text(folder, "report.json", letter * size * 2_000)


def test_two_processes_that_write_one_file_never_mix(tmp_path):
    processes = [in_another_process(write_often, tmp_path, letter) for letter in "ab"]
    while any(process.is_alive() for process in processes):
        if (tmp_path / "report.json").exists():
            assert len(set((tmp_path / "report.json").read_text())) == 1
    assert all(map(ended_well, processes))
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


# ---- the pipeline's record


def record_steps(folder, letter):
    for number in range(8):
        output = folder / f"{letter}{number}.jsonl"
        output.write_text(letter)
        step = Step(name=output.stem, module="precompute.rollout", launch=(), flags={"out": (str(output),)})
        Record(folder).add(step, {})


def test_two_pipelines_that_share_a_folder_keep_each_others_steps(tmp_path):
    assert all(map(ended_well, [in_another_process(record_steps, tmp_path, letter) for letter in "ab"]))
    steps = json.loads((tmp_path / "pipeline.json").read_text())["steps"]
    assert set(steps) == {f"{letter}{number}" for letter in "ab" for number in range(8)}


def test_a_file_of_another_content_with_the_time_of_the_old_one_is_seen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, out = Path("prompts.jsonl"), Path("samples.jsonl")
    data.write_text("old")
    out.write_text("samples")
    flags = {"out": (str(out),), "data": (str(data),)}
    step = Step(name="rollout", module="precompute.rollout", launch=(), flags=flags)
    record = Record(tmp_path)
    record.add(step, record.inputs(step))
    assert Record(tmp_path).is_done(step)
    stat = data.stat()
    time.sleep(0.02)
    data.write_text("new")
    os.utime(data, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as after cp -p
    with pytest.raises(AlignDistilError, match=r"prompts\.jsonl is not what it read"):
        Record(tmp_path).is_done(step)
