"""What commands say: --quiet, Python's levels, and progress with a terminal and without."""

import ast
import importlib
import logging
import threading

import pytest
from fake_cache import make_cache
from test_layers import COMMANDS, modules
from tiny import make_pairs, write_jsonl

from shards import progress as progress_module
from shards.progress import Lines, commanded, progress
from shards.say import NAME, result, say, speaks, warn

PRINTS = {
    "shards.cli.command": "errors",
    "precompute.processes": "errors",
    "student.train.ranks": "errors",
    "shards.pipeline.__main__": "the exit code of a step",
    **dict.fromkeys(("shards.learn.__main__", "shards.inspect.__main__"), "a table that was asked for"),
    **dict.fromkeys(("precompute.check.__main__", "student.evaluate.__main__"), "a report that was asked for"),
}
"""The modules that print past Python's logging, and what."""


@pytest.fixture
def lines(monkeypatch):
    """The lines of progress, without a terminal."""
    found = []
    monkeypatch.setattr(progress_module, "draws", lambda: False)
    monkeypatch.setattr(logging.getLogger(NAME), "handlers", [handler := logging.Handler()])
    handler.emit = lambda record: found.append(record.getMessage())
    monkeypatch.setattr(logging.getLogger(NAME), "propagate", False)
    monkeypatch.setattr(logging.getLogger(NAME), "level", logging.INFO)
    logging.getLogger(NAME).manager._clear_cache()
    return found


@pytest.fixture
def small(tmp_path):
    return make_cache(tmp_path / "cache")


# ---- one way to speak


def test_nobody_but_one_module_makes_a_bar_and_only_results_and_errors_are_printed():
    for name, tree in modules().items():
        nodes = list(ast.walk(tree))
        bars = [node for node in nodes if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tqdm")]
        assert not bars or name in ("shards.progress", "shards.say"), f"{name} makes a bar of its own"
        calls = [node.func for node in nodes if isinstance(node, ast.Call)]
        printed = [func for func in calls if isinstance(func, ast.Name) and func.id == "print"]
        assert not printed or name in PRINTS, f"{name} prints, and --quiet cannot know of it"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_the_flag(command, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"{command}.__main__").main(["--help"])
    assert end.value.code == 0
    assert "--quiet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("quiet", "level", "out", "err"),
    [
        (False, None, "plan\nresult\n", "warning: odd\n"),
        (True, None, "result\n", "warning: odd\n"),
        (False, logging.WARNING, "result\n", "warning: odd\n"),
        (True, logging.ERROR, "result\n", ""),
        (False, logging.ERROR, "result\n", ""),
        (True, logging.DEBUG, "result\n", "warning: odd\n"),
    ],
)
def test_quiet_and_levels_choose_among_lines_and_never_among_results(quiet, level, out, err, capsys):
    with commanded(quiet=quiet, level=level):
        say("plan")
        warn("odd")
        result("result")
    assert capsys.readouterr() == (out, err)
    say("after")
    assert capsys.readouterr() == ("after\n", "")


def test_pythons_own_level_is_respected(capsys):
    logging.getLogger(NAME).setLevel(logging.WARNING)
    try:
        say("plan")
        assert not speaks()
        assert progress(range(3), "work").disable
        assert capsys.readouterr() == ("", "")
    finally:
        logging.getLogger(NAME).setLevel(logging.INFO)


def test_text_with_a_percent_sign_is_said_as_it_is(capsys):
    say("100% of %s")
    assert capsys.readouterr().out == "100% of %s\n"


# ---- progress


def test_without_a_terminal_there_is_a_line_with_share_rate_and_time_left(lines, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: clock[0])
    with progress(None, "scoring", total=4000, unit="tok", initial=1000) as bar:
        clock[0] += 60
        bar.update(600)
        bar.say()
        clock[0] += 60
        bar.update(2400)
    assert lines == [
        "scoring: 40%, 1,600 of 4,000 tok, 10 tok/s, 4 min 0 s left",
        "scoring: 100%, 4,000 of 4,000 tok, 25 tok/s, took 2 min 0 s",
    ]


@pytest.mark.parametrize(
    ("given", "made", "seconds", "text"),
    [
        ({"total": 14e9, "unit": "B"}, 7e9, 70, "x: 50%, 7,000 of 14,000 MB, 100 MB/s, 1 min 10 s left"),
        ({"total": 3, "unit": "model"}, 1, 50, "x: 33%, 1 of 3 models, 50 s a model, 1 min 40 s left"),
        ({"total": None, "unit": "row"}, 5, 50, "x: 5 rows, 0.1 row/s, 50 s so far"),
        ({"total": None, "unit": "it"}, 0, 50, "x: 50 s so far"),
        ({"total": 3, "unit": "step"}, 0, 50, "x: 0%, 0 of 3 steps, 50 s so far"),
        ({"total": 3, "unit": "batch"}, 0, 50, "x: 0%, 0 of 3 batches, 50 s so far"),
    ],
)
def test_a_line_counts_in_units_a_person_uses(given, made, seconds, text, monkeypatch, lines):
    clock = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: clock[0])
    bar = Lines(None, "x", **given)
    clock[0] = seconds
    bar.update(made)
    assert bar.text() == text
    bar.close()


def test_lines_come_by_themselves_while_one_step_of_the_work_goes_on(lines, monkeypatch):
    monkeypatch.setattr(progress_module, "FIRST_SECONDS", 0.01)
    heard = threading.Event()
    logging.getLogger(NAME).handlers[0].emit = lambda record: heard.set()
    with progress(None, "compiling", total=1):
        assert heard.wait(20)


def test_short_work_says_nothing_without_a_terminal_and_its_thread_ends(lines):
    before = set(threading.enumerate())
    assert list(progress(range(3), "work")) == [0, 1, 2]
    assert lines == []
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
        assert not thread.is_alive()


def test_only_the_first_process_of_a_launcher_shows_progress(monkeypatch, lines):
    assert isinstance(progress(range(3), "work"), Lines)
    monkeypatch.setenv("RANK", "1")
    assert progress(range(3), "work").disable


def test_a_terminal_has_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(progress_module, "draws", lambda: True)
    assert list(progress(range(3), "work", unit="row")) == [0, 1, 2]
    assert "work: 100%" in capsys.readouterr().err


def test_no_librarys_bar_goes_around_it(monkeypatch, lines, capsys):
    import datasets
    import huggingface_hub.utils
    from transformers.utils import logging as hf_logging

    monkeypatch.setattr(progress_module, "FIRST_SECONDS", 3600)
    for quiet in (True, False):
        with commanded(quiet=quiet):
            assert datasets.are_progress_bars_disabled()
            assert huggingface_hub.utils.are_progress_bars_disabled()
            list(hf_logging.tqdm(range(3), desc="Loading weights"))
            datasets.Dataset.from_dict({"a": [1, 2]}).map(lambda row: row)
        assert not datasets.are_progress_bars_disabled()
        assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(progress_module, "draws", lambda: True)
    with commanded():
        list(hf_logging.tqdm(range(3), desc="Loading weights"))
        assert not datasets.are_progress_bars_disabled()
    assert "Loading weights: 100%" in capsys.readouterr().err


def test_loading_a_model_is_counted_in_the_bytes_of_its_weights(trio_folders, monkeypatch):
    from student.load import load_model

    bars = []

    def counted(*args, **given):
        bars.append(Lines(None, args[1], total=given["total"], unit=given["unit"]))
        return bars[-1]

    monkeypatch.setattr("shards.modelfiles.folder.progress", counted)
    model = load_model(str(trio_folders["dpo"]), dtype="float32")
    (bar,) = bars
    assert bar.total == sum(p.numel() * p.element_size() for p in model.parameters())
    assert bar.n == pytest.approx(bar.total)
    assert bar.desc.startswith("loading ")


def test_hashing_is_counted_in_bytes(trio_folders, monkeypatch):
    from shards.modelfiles.folder import weights_sha256

    bars = []
    monkeypatch.setattr(
        "shards.modelfiles.folder.progress",
        lambda *args, **given: bars.append(Lines(None, args[1], **given_of(given))) or bars[-1],
    )
    weights_sha256(trio_folders["dpo"], "model")
    assert bars[0].n == bars[0].total == (trio_folders["dpo"] / "model.safetensors").stat().st_size


def given_of(given):
    return {name: given[name] for name in ("total", "unit")}


@pytest.mark.parametrize("kind", ["pairs.jsonl", "pairs.jsonl.gz", "pairs.jsonl.zst", "pairs.parquet", "saved"])
def test_the_number_of_rows_is_known_before_they_are_read(kind, tmp_path):
    import datasets

    from precompute.data.reader import DataReader
    from precompute.data.sources import Data

    rows = make_pairs(4000)
    path = tmp_path / kind
    if kind == "saved":
        with commanded(quiet=True):
            datasets.Dataset.from_list(rows).save_to_disk(path)
    elif kind.endswith("parquet"):
        with commanded(quiet=True):
            datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        write_jsonl(tmp_path / "pairs.jsonl", rows)
        pack(tmp_path / "pairs.jsonl", path)
    reader = DataReader(Data.of(str(path)))
    expected = []
    for number, _ in enumerate(reader):
        if number % 500 == 499:
            expected.append(reader.expected_rows())
    packed = path.suffix in (".gz", ".zst")  # which are read in large pieces
    assert all(3000 < rows < 5000 or packed for rows in expected[:-1]), expected
    assert 3900 < expected[-1] < 4200
    assert reader.expected_rows() == 4000
    limited = DataReader(Data.of(str(path), limit=7))
    assert limited.expected_rows() == 7
    assert len(list(limited)) == limited.expected_rows() == 7


def pack(source, path):
    import gzip

    import zstandard

    content = source.read_bytes()
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content))
    elif path.suffix == ".zst":
        path.write_bytes(zstandard.compress(content))


# ---- commands


def test_quiet_leaves_of_a_command_on_a_cache_what_it_was_asked_to_print(small, tmp_path, capsys):
    from shards.copy.__main__ import main as copy
    from shards.inspect.__main__ import main as inspect
    from shards.verify.__main__ import main as verify

    folder = str(small.folder)
    for main, words in (
        (verify, [folder]),
        (inspect, [folder, "--html", str(tmp_path / "page.html")]),
        (copy, [folder, str(tmp_path / "copy")]),
        (verify, [str(tmp_path / "copy")]),
    ):
        main([*words, "--quiet"])
        assert capsys.readouterr() == ("", ""), words
    inspect([folder, "--quiet"])
    assert "verdict" in capsys.readouterr().out
    (tmp_path / "copy" / "part-00000.arrow").write_bytes(b"")
    with pytest.raises(SystemExit):
        verify([str(tmp_path / "copy"), "--quiet"])
    assert "part-00000.arrow" in capsys.readouterr().out


def test_a_quiet_build_and_training_show_only_what_should_be_looked_at(trio_folders, pairs_file, tmp_path, capsys):
    from precompute.build.__main__ import main as build
    from student.train.__main__ import main as train

    models = [f"{role}={folder}" for role, folder in trio_folders.items()]
    cache = str(tmp_path / "cache")
    build(
        ["--models", *models, "--data", str(pairs_file), "--out", cache, "--device", "cpu", "--top_k", "5", "--quiet"]
    )
    out, err = capsys.readouterr()
    assert out == ""
    assert all(line.startswith("warning: ") for line in err.splitlines()), err
    flags = "--use_cpu --report_to none --save_strategy no --max_steps 2 --global_batch_size 2 --warmup_steps 0"
    batch = "--per_device_train_batch_size 2 --quiet"
    train(["--shards", cache, "--output_dir", str(tmp_path / "out"), *flags.split(), *batch.split()])
    out, err = capsys.readouterr()
    assert out == ""
    assert all(line.startswith("warning: ") for line in err.splitlines()), err


def test_a_pipeline_passes_quiet_on_and_does_not_record_it(tmp_path):
    from shards.pipeline.record import _command
    from shards.pipeline.step import Step

    step = Step(name="a", module="student.train", launch=(), flags={"quiet": (), "shards": ("s",)})
    assert step.words("py", quiet=True) == ["py", "-m", "student.train", "--shards", "s", "--quiet"]
    assert "--quiet" in step.words("py")
    assert "quiet" not in _command(step)["flags"]
