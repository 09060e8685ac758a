"""The commands as a user runs them: from any folder, with any spelling of a flag, twice, and after a kill."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import fresh
import pytest
from tiny import load, make_pairs, write_jsonl

import precompute
import shards
import student
from precompute.build.__main__ import main as build_main
from precompute.build.options import BuildOptions
from precompute.check.__main__ import main as check_main
from precompute.check.options import CheckOptions
from precompute.rollout.__main__ import main as rollout_main
from precompute.rollout.options import RolloutOptions
from precompute.teachers.__main__ import main as teachers_main
from precompute.teachers.options import TeacherOptions
from shards.cli.flags.teacher_flags import TeacherFlags
from student.evaluate.__main__ import main as evaluate_main
from student.evaluate.__main__ import parse as parse_evaluate
from student.options import DistillArguments
from student.train.__main__ import main as train_main

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
SECONDS = 120


def run(folder, *command):
    """Run Python in `folder`; returns its output."""
    whole = [sys.executable, *command]
    done = subprocess.run(whole, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def snapshot(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def models(trio_folders):
    return ["--models", *(f"{role}={folder}" for role, folder in trio_folders.items())]


def test_commands_work_where_folders_have_the_names_of_the_packages(
    trio_folders, tmp_path, tmp_path_factory, monkeypatch, capsys
):
    write_jsonl(tmp_path / "pairs.jsonl", make_pairs(4))
    theirs = [
        "shards/notes.jsonl",
        "shards/cache.py",
        "student/essays.jsonl",
        "precompute/processes.py",
    ]
    for name in theirs:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('not the package')\n")
    before = snapshot(tmp_path)

    packages = [shards, student, precompute]
    look_up = "import importlib.util, sys; print(*(importlib.util.find_spec(name).origin for name in sys.argv[1:]))"
    found = run(tmp_path, "-c", look_up, *(package.__name__ for package in packages))
    assert found.split() == [package.__file__ for package in packages]

    build = ["-m", "precompute.build", *models(trio_folders), "--data", "pairs.jsonl"]
    build += ["--top-k", "5", "--max_top_k", "12", "--tokens-per-shard=10"]
    printed = run(tmp_path, *build)
    assert "shards: done" in printed
    built = snapshot(tmp_path)
    assert {name: built[name] for name in before} == before
    new = sorted(built.keys() - before.keys())
    assert all(name.startswith("shards/") for name in new)
    assert {"shards/manifest.json", "shards/part-00000.arrow", "shards/part-00001.arrow"} <= set(new)
    options = json.loads(built["shards/manifest.json"])["identity"]["options"]
    assert [options[name] for name in ("top_k", "max_top_k", "tokens_per_shard")] == [5, 12, 10]

    monkeypatch.chdir(tmp_path)
    build_main(build[2:])
    assert "shards: already built from the same inputs, nothing to do" in capsys.readouterr().out
    assert "4 rows" in run(tmp_path, "-m", "shards.verify")
    assert snapshot(tmp_path) == built

    train = ["-m", "student.train", "--output_dir", "out", "--max-steps", "2", "--global_batch_size", "2"]
    train += ["--per-device-train-batch-size", "2", "--use_cpu", "--report-to", "none", "--save_strategy", "no"]
    done = fresh.run(train[1], train[2:], tmp_path, tmp_path_factory.mktemp("logs") / "train")
    assert done.returncode == 0, done.stderr[-3000:]
    load(tmp_path / "out")
    assert {name: content for name, content in snapshot(tmp_path).items() if not name.startswith("out/")} == built


def test_a_killed_build_goes_on_to_the_bytes_of_an_unbroken_one(trio_folders, tmp_path):
    data = write_jsonl(tmp_path / "pairs.jsonl", make_pairs(200))
    flags = [*models(trio_folders), "--data", str(data), "--top_k", "5", "--max_top_k", "12", "--tokens_per_shard", "1"]
    build_main([*flags, "--out", str(tmp_path / "unbroken")])

    out = tmp_path / "broken"
    flags += ["--out", str(out)]
    process = fresh.start("precompute.build", flags, tmp_path, tmp_path / "killed")
    give_up = time.monotonic() + SECONDS
    while not (out / "part-00000.arrow").exists():
        assert process.is_alive() and time.monotonic() < give_up, fresh.printed(tmp_path / "killed")
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    left = snapshot(out)
    written = {name for name in left if name.startswith("part-")}
    assert 0 < len(written) < 200 and "manifest.json" not in left
    for number in (199, 200):  # one that will be written, and one that will not
        (out / f".part-{number:05d}.arrow.aligndistil-tmp").write_bytes(b"half a shard")

    done = fresh.run("precompute.build", flags, tmp_path, tmp_path / "again")
    assert done.returncode == 0 and "already done" in done.stdout, done.stderr[-3000:]
    assert snapshot(out) == snapshot(tmp_path / "unbroken")


@pytest.mark.parametrize(
    ("main", "flags"),
    [
        (build_main, [field.name for field in dataclasses.fields(BuildOptions)]),
        (
            teachers_main,
            [*(field.name for field in dataclasses.fields(TeacherOptions)), "beta", "loss_type", "save_steps"],
        ),
        (check_main, [field.name for field in dataclasses.fields(CheckOptions)]),
        (rollout_main, [field.name for field in dataclasses.fields(RolloutOptions)]),
        (evaluate_main, [*vars(parse_evaluate([])), "samples_against", "learned_offset"]),
        (
            train_main,
            [
                *DistillArguments.__annotations__,
                *TeacherFlags.__annotations__,
                "output_dir",
                "per_device_train_batch_size",
                "max_steps",
            ],
        ),
    ],
    ids=["build", "teachers", "check", "rollout", "evaluate", "train"],
)
def test_help_explains_every_flag_in_both_spellings(main, flags, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    _, _, explained = capsys.readouterr().out.partition("options:")
    for flag in flags:
        assert f"--{flag} " in explained or f"--{flag}, " in explained, flag
        assert f"--{flag.replace('_', '-')} " in explained or f"--{flag.replace('_', '-')}\n" in explained, flag


@pytest.mark.parametrize("module", ["shards.verify", "shards.inspect", "shards.learn", "shards.pipeline"])
def test_help_of_the_commands_of_the_room_shards(module, tmp_path):
    assert f"usage: python -m {module}" in run(tmp_path, "-m", module, "--help")
