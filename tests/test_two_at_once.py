"""Two commands on one file or folder: one is refused, and neither damages the other's work."""

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest
from test_rollout import options, rows_of
from tiny import make_llama, save

from precompute.rollout import __main__ as rollout_module
from precompute.rollout.__main__ import rollout
from precompute.rollout.sampling import TransformersEngine
from shards.errors import AlignDistilError, CacheConflict
from shards.format.writer import exclusive, write_text
from shards.pipeline.record import Record
from shards.pipeline.step import Step

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


def test_a_rollout_that_comes_second_does_not_sign_the_file_of_the_first(model, data, tmp_path, monkeypatch):
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
    with pytest.raises(CacheConflict, match="expected no other build at work here, found one"):
        rollout(second)
    go_on.set()
    assert ended_well(process)
    assert sidecar(path)["options"]["seed"] == 1
    before = path.read_bytes()
    assert rollout(first) == path  # recognised
    with pytest.raises(CacheConflict, match=r"holds another rollout, options\.seed: expected 1, got 2"):
        rollout(second)
    assert path.read_bytes() == before


@pytest.mark.parametrize("seed", [1, 2])
def test_a_rollout_that_another_one_did_meanwhile_is_left_as_it_is(seed, model, data, tmp_path, monkeypatch, capsys):
    path = tmp_path / "samples.jsonl"
    load = rollout_module.load_engine

    def slowly(asked, inputs):
        with monkeypatch.context() as patch:
            patch.setattr(rollout_module, "load_engine", load)
            assert ended_well(in_another_process(rollout, options(model, data, path, seed=1)))
        return load(asked, inputs)

    monkeypatch.setattr(rollout_module, "load_engine", slowly)
    if seed == 1:
        rollout(options(model, data, path, seed=seed))
        assert "already sampled from the same inputs" in capsys.readouterr().out
    else:
        with pytest.raises(CacheConflict, match="holds another rollout"):
            rollout(options(model, data, path, seed=seed))
    assert sidecar(path)["options"]["seed"] == 1 and len(rows_of(path)) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == [data.name, path.name, f"{path.name}.identity.json"]


# ---- the lock, and files that are written whole


def test_a_lock_of_a_file_that_its_owner_has_removed_keeps_nobody_out(tmp_path, monkeypatch):
    from shards.format import writer

    file = tmp_path / "samples.jsonl.partial"
    file.touch()
    opened = os.open

    def removed_meanwhile(path, flags):
        monkeypatch.undo()
        descriptor = opened(path, flags)
        file.unlink()
        file.touch()
        return descriptor

    monkeypatch.setattr(writer.os, "open", removed_meanwhile)
    with pytest.raises(CacheConflict, match="found one that has just ended"), exclusive(file):
        pass


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
