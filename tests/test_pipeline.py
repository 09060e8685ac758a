"""shards.pipeline: runs each real command once; skips what is done and unchanged, refuses what has changed."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import fresh
import pytest
import yaml
from tiny import load, make_llama, make_pairs, save, write_jsonl

from precompute.build.options import BuildOptions
from precompute.rollout.options import RolloutOptions
from precompute.teachers.options import TeacherOptions
from shards.errors import AlignDistilError
from shards.locks.lock import exclusive_file
from shards.pipeline.__main__ import command_text, main, run_pipeline
from shards.pipeline.file import read_pipeline
from shards.pipeline.step import COMMANDS
from student.evaluate.__main__ import parse as parse_evaluate
from student.options import DistillArguments

EXAMPLES = Path(__file__).parents[1] / "examples"
CPU = {"use_cpu": "true", "dataloader_pin_memory": "false", "report_to": "none", "disable_tqdm": "true"}
STEPS = {
    "teachers": {
        "run": "precompute.teachers",
        "flags": {"reference": "$reference", "data": "$data", "out": "$out/models", "max_steps": 1}
        | {"learning_rate": "1e-3", "gradient_checkpointing": "false", "save_strategy": "no"}
        | CPU,
    },
    "build": {
        "run": "precompute.build",
        "flags": {
            "models": ["dpo=$out/models/dpo", "reverse=$out/models/reverse", "reference=$reference"],
            "data": "$data",
            "out": "$out/shards",
            "responses": "both",
            "top_k": 5,
            "max_top_k": 12,
        },
    },
    "train": {
        "run": "student.train",
        "flags": {"shards": "$out/shards", "output_dir": "$out/student", "max_steps": 2, "global_batch_size": 4}
        | {"per_device_train_batch_size": 4, "warmup_steps": 0, "save_strategy": "no"}
        | CPU,
    },
    "evaluate": {
        "run": "student.evaluate",
        "flags": {"model": "$out/student", "shards": "$out/shards", "json": "$out/report.json"},
    },
}


def write_pipeline(changes=None, *, steps=("teachers", "build", "train", "evaluate"), **names):
    """Write steps.yaml in the working directory; changes: step -> flags or other keys that replace its own."""
    listed = []
    for name in steps:
        step = {"name": name} | STEPS[name]
        for key, value in (changes or {}).get(name, {}).items():
            step = (
                step | {key: value}
                if key in ("run", "launch", "name")
                else step | {"flags": step["flags"] | {key: value}}
            )
        listed.append(step)
    used = {"out": "runs", "reference": "reference", "data": "pairs.jsonl"} | names
    text = yaml.safe_dump(listed)
    whole = {name: value for name, value in used.items() if name == "out" or f"${name}" in text} | {"steps": listed}
    Path("steps.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
    return Path("steps.yaml")


def in_a_fork(logs, step, *, quiet=False):
    """A step in a process that has the libraries loaded; what it printed as errors is printed here."""
    done = fresh.run(step.module, step.words()[3:], Path.cwd(), logs / step.name)
    sys.stderr.write(done.stderr)
    return done.returncode


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which the whole pipeline has run once, and what it printed.

    The second step by real starts of the pipeline and of the command, as in the tests of exit codes and signals; the
    others each in a process that has the libraries loaded.
    """
    folder = tmp_path_factory.mktemp("pipeline")
    save(make_llama(0, scale=0.1), folder / "reference")
    write_jsonl(folder / "pairs.jsonl", make_pairs(8))
    logs = tmp_path_factory.mktemp("logs")

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.chdir(folder)
        patch.setattr("shards.pipeline.__main__.run_to_end", partial(in_a_fork, logs))
        main([str(write_pipeline(steps=["teachers"]))])
        command = [sys.executable, "-m", "shards.pipeline", str(write_pipeline(steps=["teachers", "build"]))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-3000:]
        printed.write(done.stdout)
        main([str(write_pipeline())])
    return folder, printed.getvalue()


@pytest.fixture
def copy(finished, tmp_path, monkeypatch):
    """A copy of that folder, to work in."""
    folder = shutil.copytree(finished[0], tmp_path / "copy")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def started(monkeypatch):
    """Steps that would run; they end with exit code 0 at once."""
    found = []
    monkeypatch.setattr("shards.pipeline.__main__.run_to_end", lambda step, quiet=False: found.append(step.name) or 0)
    return found


def refusal(action):
    with pytest.raises(AlignDistilError) as caught:
        action()
    message = str(caught.value)
    assert message.strip() and "\n" not in message
    return message


def snapshot(folder):
    return {str(path): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


# ---- running and skipping


def test_the_commands_run_in_order_and_leave_what_they_leave_alone(finished):
    folder, printed = finished
    order = [printed.index(f"$ python -m {STEPS[name]['run']}") for name in STEPS]
    assert order == sorted(order)
    for name in STEPS:
        assert f"\n{name}: done after" in printed
    load(folder / "runs/student")
    report = json.loads((folder / "runs/report.json").read_text())
    assert ([row["model"] for row in report["models"]], report["responses"]) == (["runs/student"], 16)
    assert list(json.loads((folder / "runs/pipeline.json").read_text())["steps"]) == list(STEPS)


def test_what_is_done_is_skipped_and_nothing_is_touched(copy, started, capsys):
    before = snapshot(".")
    assert run_pipeline(write_pipeline()) == 0
    assert not started and snapshot(".") == before
    assert capsys.readouterr().out.count("skipped") == len(STEPS)


def test_a_file_that_was_only_touched_is_the_same(copy, started):
    Path("pairs.jsonl").touch()
    os.utime("runs/models/dpo/model.safetensors", (0, 0))
    assert run_pipeline(write_pipeline()) == 0
    assert not started


def test_logs_checkpoints_and_the_card_are_no_part_of_a_model(copy, started):
    for path in ("runs/student/checkpoint-1/model.safetensors", "runs/student/runs/events", "runs/student/README.md"):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text("other")
    assert run_pipeline(write_pipeline()) == 0
    assert not started


def test_a_step_whose_output_is_gone_is_done_again_and_one_that_read_it_is_refused(copy, monkeypatch):
    shutil.rmtree("runs/student")
    ran = []

    def another_training(step, *, quiet=False):
        ran.append(step.name)
        save(make_llama(1), Path("runs/student"))
        return 0

    monkeypatch.setattr("shards.pipeline.__main__.run_to_end", another_training)
    for _ in range(2):
        message = refusal(lambda: run_pipeline(write_pipeline()))
        assert "step evaluate: runs/student is not what it read; put that back, or give the step another" in message
        assert ran == ["train"]
    Path("runs/report.json").rename("old.json")
    assert "step evaluate: ended without an error, but there is no" in refusal(lambda: run_pipeline(write_pipeline()))
    assert ran == ["train", "evaluate"]


def test_a_new_step_runs_beside_those_that_are_done(copy, started):
    file = write_pipeline({"evaluate": {"name": "evaluate-gain-20", "gain": 20, "json": "$out/report-20.json"}})
    assert "no runs/report-20.json" in refusal(lambda: run_pipeline(file))
    assert started == ["evaluate-gain-20"]


# ---- what has changed is refused


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train": {"gain": 15}}, 'step train: was done with flags.gain null, got "15"; put that back, or give the'),
        ({"build": {"top_k": 6}}, 'step build: was done with flags.top_k "5", got "6"'),
        ({"build": {"launch": "torchrun"}}, 'step build: was done with launch "", got "torchrun"'),
        ({"evaluate": {"shards": ["$out/held-out"]}}, 'flags.shards "runs/shards", got "runs/held-out"'),
    ],
)
def test_another_flag_is_refused_before_anything_runs(copy, started, changes, expected):
    shutil.rmtree("runs/models")  # so that teachers would run
    file = write_pipeline(changes)
    before = snapshot(".")
    message = refusal(lambda: run_pipeline(file))
    assert expected in message and "or remove runs/" in message
    assert not started and snapshot(".") == before


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("pairs.jsonl", "step teachers: pairs.jsonl is not what it read"),
        ("reference/model.safetensors", "step teachers: reference is not what it read"),
        ("runs/models/reverse/config.json", "step teachers: runs/models/reverse is not what it left"),
        ("runs/shards/manifest.json", "step build: runs/shards is not what it left"),
        ("runs/student/model.safetensors", "step train: runs/student is not what it left"),
        ("runs/report.json", "step evaluate: runs/report.json is not what it left"),
    ],
)
def test_other_bytes_are_refused_whoever_wrote_them(copy, started, path, expected):
    Path(path).write_bytes(Path(path).read_bytes() + b"\n")
    assert expected in refusal(lambda: run_pipeline(write_pipeline()))
    assert not started


def test_a_report_that_no_step_wrote_is_not_written_over(copy, started):
    file = write_pipeline({"evaluate": {"name": "again"}})
    assert "runs/report.json: expected nothing, found what step again did not write" in refusal(
        lambda: run_pipeline(file)
    )
    assert not started


def test_a_record_of_another_format_is_refused(copy, started):
    Path("runs/pipeline.json").write_text('{"format": 2, "steps": {}}')
    assert "runs/pipeline.json: expected a record of format 1, got 2" in refusal(lambda: run_pipeline(write_pipeline()))


# ---- failures, signals, dry runs


def test_the_exit_code_is_that_of_the_step_and_what_was_done_stays(copy, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr("shards.pipeline.__main__.run_to_end", partial(in_a_fork, tmp_path))
    file = write_pipeline({"evaluate": {"name": "other", "json": "$out/other.json", "no_such_flag": 1}})
    with pytest.raises(SystemExit) as ended:
        main([str(file)])
    assert ended.value.code == 2
    assert capfd.readouterr().err.splitlines() == [
        "error: unrecognized arguments: --no_such_flag 1 (--help lists all flags)",
        "steps.yaml: step other ended with exit code 2; the same command goes on from here",
    ]
    assert list(json.loads(Path("runs/pipeline.json").read_text())["steps"]) == list(STEPS)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_step_in_its_own_way_and_then_the_pipeline(number, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("launcher.py").write_text(
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        "try:\n    pathlib.Path('begun').touch()\n    time.sleep(100)\n"
        "except KeyboardInterrupt:\n"
        "    print('what the step says', file=sys.stderr, flush=True)\n"
        "    time.sleep(0.3)  # as long as a command may take to end\n"
        f"    pathlib.Path('ended').touch()\n    sys.exit({code if number == signal.SIGINT else 0})\n"
    )
    file = write_pipeline({"teachers": {"launch": f"{sys.executable} launcher.py"}})
    command = [sys.executable, "-m", "shards.pipeline", str(file)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    give_up = time.monotonic() + 60
    while not Path("begun").exists():
        assert process.poll() is None and time.monotonic() < give_up
        time.sleep(0.01)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal sends it
    else:
        process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert Path("ended").exists() and process.returncode == code
    lines = ["what the step says", f"steps.yaml: step teachers ended with exit code {code}; the same command goes on"]
    assert errors == "\n".join(lines) + " from here\n"
    assert not Path("runs").exists()


def test_a_launcher_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write_pipeline({"teachers": {"launch": "no-such-launcher --nproc_per_node 8"}})
    assert "step teachers: expected a launcher that runs, got no-such-launcher" in refusal(lambda: run_pipeline(file))


def test_two_at_once_are_one_too_many(copy):
    with exclusive_file(Path("runs/steps.yaml")):
        message = refusal(lambda: run_pipeline(Path("steps.yaml")))
    assert message.startswith("steps.yaml: expected no other command at work here, found python -")


def test_a_dry_run_prints_the_commands_and_runs_none(copy, started, capsys):
    shutil.rmtree("runs/student")
    file = write_pipeline()
    before = snapshot(".")
    main([str(file), "--dry-run"])
    printed = capsys.readouterr().out
    states = [line for line in printed.splitlines() if line[0] not in "$ "]
    assert states == ["teachers: already done", "build: already done", "train:", "evaluate:"]
    words = printed[printed.index("$ python -m precompute.build") : printed.index("train:")].replace("\\\n", "")
    assert words.split()[1:] == read_pipeline(file).steps[1].words("python")
    assert max(map(len, printed.splitlines())) <= 112
    assert not started and snapshot(".") == before


def test_a_launcher_stands_in_the_place_of_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (step,) = read_pipeline(write_pipeline({"build": {"launch": "torchrun --nproc_per_node 2"}}, steps=["build"])).steps
    assert command_text(step).startswith("$ torchrun --nproc_per_node 2 -m precompute.build \\\n      --models dpo=")


# ---- the file


def parse(text, tmp_path):
    (tmp_path / "steps.yaml").write_text(text)
    return read_pipeline(tmp_path / "steps.yaml")


BUILD = "out: runs\nsteps:\n  - name: build\n    run: precompute.build\n    flags:\n"


def test_a_scalar_is_the_text_that_stands_there(tmp_path):
    text = BUILD + "      out: $out/a\n      learning_rate: 1e-6\n      save_strategy: no\n      limit: 010\n"
    (step,) = parse(text + "      trust-remote-code:\n      models: [a=$$x, b]\n", tmp_path).steps
    assert step.words()[1:] == [
        *("-m", "precompute.build", "--out", "runs/a", "--learning_rate", "1e-6", "--save_strategy", "no"),
        *("--limit", "010", "--trust_remote_code", "--models", "a=$x", "b"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected a mapping, got None"),
        ("steps: [", "expected YAML, got expected the node content, but found '<stream end>' in line 1"),
        ("out: a\nout: b\n", "expected YAML, got out a second time in line 2"),
        ("steps: []\n", "expected out, the folder of the record, got none"),
        ("out: runs\nsteps: []\n", "expected a list of steps, got []"),
        ("out: runs\nout-2: runs\nsteps: []\n", "out-2: expected a name and a text, got 'runs'"),
        ("out: [a]\nsteps: []\n", "out: expected a name and a text, got ['a']"),
        ("out: $home/runs\nsteps: []\n", "out: expected no name ($$ for a dollar), got '$home/runs'"),
        (BUILD + "      out: $outt/a\n", "steps[0].flags.out: expected $out ($$ for a dollar), got '$outt/a'"),
        (BUILD + "      out: a\n      top_k: {a: 1}\n", "steps[0].flags.top_k: expected a text or a list of texts"),
        (BUILD + "      out: a\n      top_k: 1\n      top-k: 2\n", "flags.top-k: expected a flag once"),
        (BUILD + "      top_k: 1\n", "steps[0].flags: expected out with a path, got []"),
        (BUILD.replace("flags", "flag"), "steps[0]: expected name, run, launch and flags, got flag"),
        (BUILD.replace("precompute.build", "rm"), "steps[0].run: expected one of precompute.teachers, "),
        (BUILD.replace("out: runs", "out: runs\ndata: x") + "      out: a\n", "data: expected a name that is used as"),
        (BUILD + "      out: a\n" + BUILD[BUILD.index("  - ") :] + "      out: b\n", "for each step, got build twice"),
        (
            BUILD
            + "      out: a\n"
            + BUILD[BUILD.index("  - ") :].replace("name: build", "name: b")
            + "      out: a\n",
            "expected an output for each step, got a twice",
        ),
        (
            BUILD.replace("precompute.build", "student.train") + "      output_dir: a\n",
            "steps[0].flags: expected shards with a path, got []",
        ),
    ],
)
def test_a_file_that_is_not_understood_is_refused(text, expected, tmp_path):
    assert expected in refusal(lambda: parse(text, tmp_path))


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    assert "expected a YAML file, got No such file" in refusal(lambda: read_pipeline(tmp_path / "a.yaml"))
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert "expected YAML, got bytes that are none" in refusal(lambda: read_pipeline(tmp_path / "b.yaml"))


def flags_of(module):
    fields = {"build": BuildOptions, "teachers": TeacherOptions, "rollout": RolloutOptions, "train": DistillArguments}
    name = module.partition(".")[2]
    return set(fields[name].__dataclass_fields__) if name in fields else set(vars(parse_evaluate([])))


@pytest.mark.parametrize("module", COMMANDS)
def test_the_flags_that_name_paths_are_flags_of_the_command(module):
    command = COMMANDS[module]
    assert {command.output, *command.reads, *command.needs} <= flags_of(module)


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_examples_are_understood(file):
    for step in read_pipeline(file).steps:
        assert command_text(step).startswith("$ ")
        if step.module != "precompute.teachers":  # the others are TRL's
            assert step.flags.keys() <= flags_of(step.module), step.name
