"""student.evaluate refuses unusable inputs in one line, before it measures anything."""

import shutil

import pytest
import torch
from test_evaluate import flags, on_cache, refusal, samples
from test_yardstick import several
from tiny import load, make_llama, nudged, save

from student.evaluate import judge
from student.evaluate.__main__ import parse


@pytest.fixture
def no_work(monkeypatch):
    def measure(*_, **__):
        pytest.fail("a model was measured before all were looked at")

    monkeypatch.setattr(judge, "measure", measure)


@pytest.fixture(scope="module")
def student_folder(trio, tmp_path_factory):
    return save(nudged(trio["reference"], 7, 0.1), tmp_path_factory.mktemp("student"))


def test_a_folder_that_is_no_model_is_refused_before_the_others_are_measured(
    sparse_cache, student_folder, tmp_path, no_work
):
    given = {"model": student_folder, "shards": sparse_cache.folder}
    for name, message in (
        ("empty", "expected a model folder with config.json, found none"),
        ("bare", "expected model*.safetensors, found no weights"),
        ("pickled", "expected model*.safetensors, found only pickle weights (pytorch_model.bin)"),
    ):
        folder = tmp_path / name
        if name == "empty":
            folder.mkdir()
        else:
            shutil.copytree(student_folder, folder)
            (folder / "model.safetensors").unlink()
        if name == "pickled":
            (folder / "pytorch_model.bin").touch()
        assert refusal(given | {"against": folder}) == f"{folder}: {message}"
    assert refusal(given | {"against": sparse_cache.folder}).startswith(f"{sparse_cache.folder}: expected a model")
    assert "found no manifest.json" in refusal(given | {"shards": student_folder})


def test_a_report_that_cannot_be_written_is_refused_before_the_work(sparse_cache, student_folder, no_work):
    given = {"model": student_folder, "shards": sparse_cache.folder, "json": "/proc/report.json"}
    assert refusal(given).startswith("json: expected a place to write to, got /proc/report.json (")


def test_several_processes_are_refused_and_a_world_size_that_was_left_is_nothing(
    sparse_cache, student_folder, monkeypatch
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert several(sparse_cache, student_folder)["responses"] == len(sparse_cache)
    monkeypatch.setenv("RANK", "0")
    message = refusal({"model": student_folder, "shards": sparse_cache.folder})
    assert message == "expected one process, got 2 of a launcher; start it with python alone"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_is_measured_in_the_dtype_that_is_asked_for_and_named(sparse_cache, student_folder, tmp_path, dtype):
    folder = save(load(student_folder, dtype), tmp_path / "half")
    name = str(dtype).removeprefix("torch.")
    report = on_cache(sparse_cache, folder, dtype=name)
    assert report["dtype"] == name
    whole = on_cache(sparse_cache, student_folder)["quantities"]
    for name in ("kl_reference", "divergence_teacher"):
        found, expected = report["quantities"][name]["model"]["mean"], whole[name]["model"]["mean"]
        assert found == pytest.approx(expected, rel=0.1)
    wide = on_cache(sparse_cache, folder)  # auto on a CPU
    assert wide["dtype"] == "float32"


def test_a_scorer_that_fails_is_one_line_with_its_place(tmp_path):
    file = samples(tmp_path / "a.jsonl", [1, 2])
    (tmp_path / "late.py").write_text("def f(prompts, completions):\n    return prompts[7]\n")
    (tmp_path / "syntax.py").write_text("def f(:\n")
    (tmp_path / "absent.py").write_text("import no_such_module\n")
    for name, got in (
        ("late.py", "IndexError: list index out of range ({}/late.py line 2)"),
        ("syntax.py", "SyntaxError: invalid syntax ({}/syntax.py line 1)"),
        ("absent.py", "ModuleNotFoundError: No module named 'no_such_module' ({}/absent.py line 1)"),
    ):
        scorer = f"{tmp_path / name}:f"
        message = refusal({"samples": file, "scorer": scorer})
        assert message == f"scorer: expected {scorer} to give scores, got {got.format(tmp_path)}"


def test_a_language_model_as_scorer_is_one_line_and_nothing_else(tmp_path, capfd, student_folder):
    file = samples(tmp_path / "a.jsonl", [1, 2])
    message = refusal({"samples": file, "scorer": student_folder})
    assert message == f"{student_folder}: expected weights for score.weight, found none"
    assert "MISSING" not in "".join(capfd.readouterr())


def test_any_number_of_models_can_be_named_with_either_spelling():
    options = parse(["--model", "a", "b", "c", *flags(shards="s", **{"jsd-weight": 0.4})])
    assert (options.model, options.jsd_weight) == (["a", "b", "c"], 0.4)


def test_a_short_model_is_refused_by_name(sparse_cache, student_folder, tmp_path):
    short = save(make_llama(0, max_position_embeddings=4), tmp_path / "short")
    message = refusal({"model": student_folder, "against": short, "shards": sparse_cache.folder})
    assert message.startswith(f"{short}: expected rows of at most 4 tokens")
