"""Students are measured against the teacher that they record, or that of the flags; the report says which."""

import json
import shutil
from types import SimpleNamespace

import pytest
from test_evaluate import flags, on_cache, refusal
from test_training import arguments, plain_sgd
from tiny import nudged, save

from precompute.build.build import build
from shards import Divergence, ShardCache, TeacherSpec
from shards.format.manifest import read_json
from student.evaluate.__main__ import evaluate, main, parse
from student.evaluate.report import report_text
from student.runs.record import RECORD_FILE, read_record, write_record
from student.train.__main__ import train

GAIN_15 = {"gain": 15.0, "divergence": "forward_kl", "reduction": "token"}


def recording(folder, cache, spec=None, divergence=None, reduction="sequence"):
    """Write into a model's folder what a run with this teacher writes."""
    args = SimpleNamespace(spec=spec or TeacherSpec(), loss_divergence=divergence or Divergence(), reduction=reduction)
    write_record(folder, args, [cache])
    return folder


@pytest.fixture(scope="module")
def plain_folder(trio, tmp_path_factory):
    return save(nudged(trio["reference"], 5, 0.1), tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def students(trio, sparse_cache, tmp_path_factory):
    """gain 10 and reverse KL; gain 15 and forward KL; jsd to linear."""
    folders = [save(nudged(trio["reference"], seed, 0.1), tmp_path_factory.mktemp("student")) for seed in (7, 8, 9)]
    recording(folders[0], sparse_cache)
    recording(folders[1], sparse_cache, TeacherSpec(gain=15), Divergence(name="forward_kl"), "token")
    recording(folders[2], sparse_cache, TeacherSpec.preset("linear"), Divergence(name="jsd", jsd_weight=0.3))
    return folders


def several(cache, *models, **given):
    command = ["--model", *map(str, models), *flags(shards=cache.folder, **given)]
    return evaluate(parse(command))


def means(entry):
    return {name: row["model"]["mean"] for name, row in entry["quantities"].items()}


def test_a_run_leaves_its_teacher_beside_its_weights_and_a_copy_is_judged_by_it(
    sparse_cache, plain_folder, tmp_path, capsys
):
    train(arguments(sparse_cache, plain_folder, tmp_path / "out", **plain_sgd(**GAIN_15)))
    folder = shutil.copytree(tmp_path / "out", tmp_path / "copy")
    (folder / "README.md").unlink()
    report = several(sparse_cache, folder)
    assert (report["teacher"]["gain"], report["divergence"]) == (15, "forward_kl")
    assert report["teacher_source"] == report["divergence_source"] == "as model records"
    asked = several(sparse_cache, plain_folder, gain=15, divergence="forward_kl")
    assert asked["teacher_text"] == report["teacher_text"]
    text = " ".join(report_text(report).split())
    assert f"records forward_kl to {TeacherSpec(gain=15)}, mean by token" in text
    assert f"teacher {TeacherSpec(gain=15)}: as model records" in text


def test_a_checkpoint_is_judged_by_its_run(sparse_cache, plain_folder, tmp_path):
    settings = plain_sgd(**GAIN_15) | {"save_strategy": "steps", "save_steps": 1}
    train(arguments(sparse_cache, plain_folder, tmp_path, **settings))
    record = read_record(str(tmp_path / "checkpoint-1"))
    assert (record.spec, record.divergence.name, record.reduction) == (TeacherSpec(gain=15), "forward_kl", "token")
    assert str(record) == str(read_record(str(tmp_path)))


def test_each_model_has_its_own_teacher_and_all_have_the_first_ones(sparse_cache, students, trio_folders):
    report = several(sparse_cache, *students, against=trio_folders["reference"])
    assert report["teacher_text"] == str(TeacherSpec()) and report["teacher_source"] == "as model 1 records"
    for number, (student, entry) in enumerate(zip(students, report["models"], strict=True)):
        alone = several(sparse_cache, student)
        own = means(alone["models"][0])
        assert alone["teacher_source"] == "as model records"
        assert entry["recorded"]["teacher"] == alone["teacher"]
        assert means(entry)["kl_reference"] == pytest.approx(own["kl_reference"])
        assert "divergence_own" not in own, "the yardstick is its own"
        if number == 0:
            assert "divergence_own" not in means(entry)
        else:
            name = "divergence_teacher" if number == 1 else "divergence_teacher_by_sequence"  # its own reduction
            assert means(entry)["divergence_own"] == pytest.approx(own[name], rel=1e-5)
    assert "divergence_own" not in report["against"]["quantities"] and report["against"]["recorded"] is None


def test_every_difference_is_that_of_a_comparison_of_two(sparse_cache, students, trio_folders):
    against = trio_folders["reference"]
    report = several(sparse_cache, *students, against=against, gain=12)
    for student, entry in zip(students, report["models"], strict=True):
        two = several(sparse_cache, student, against=against, gain=12, teacher="aligndistil", divergence="reverse_kl")
        for name, row in two["models"][0]["quantities"].items():
            if name != "divergence_own":
                assert entry["quantities"][name] == row
        assert entry["accuracy"] == two["models"][0]["accuracy"]


def test_flags_win_field_by_field_and_are_said_beside_the_record(sparse_cache, students):
    _, second, third = students
    report = several(sparse_cache, second, gain=5)
    assert (report["teacher"]["gain"], report["divergence"]) == (5, "forward_kl")
    assert report["teacher_source"] == "--gain 5.0, and otherwise as model records"
    assert report["divergence_source"] == "as model records"
    assert "gain 15" in report["models"][0]["recorded_text"]
    assert "divergence_own" in report["models"][0]["quantities"], "what it was trained for is measured too"

    report = several(sparse_cache, third, divergence="reverse_kl", teacher="adaptive", beta=0.2)
    assert report["teacher_text"] == str(TeacherSpec.preset("adaptive", beta=0.2))
    assert report["teacher_source"] == "--teacher adaptive --beta 0.2, and otherwise the preset's"
    assert (report["divergence"], report["divergence_source"]) == (
        "reverse_kl",
        "--divergence reverse_kl, and otherwise as model records",
    )
    report = several(sparse_cache, third)
    assert (report["divergence"], report["jsd_weight"]) == ("jsd", 0.3)


def test_a_model_without_a_record_is_judged_by_the_default_and_the_report_says_so(sparse_cache, plain_folder, students):
    report = several(sparse_cache, plain_folder)
    assert report["teacher_source"] == "the default, since no model here records its own"
    assert "records no teacher" in report_text(report)
    assert several(sparse_cache, plain_folder, gain=5)["teacher_source"] == "--gain 5.0, and the defaults"
    report = several(sparse_cache, plain_folder, students[1])
    assert (report["teacher"]["gain"], report["teacher_source"]) == (15, "as model 2 records")


def test_a_learned_strength_is_taken_with_its_numbers_and_left_with_them(sparse_cache, plain_folder, tmp_path):
    folder = shutil.copytree(plain_folder, tmp_path / "copy")
    spec = TeacherSpec(strength="learned", learned_offset=0.25, learned_slope=1.5)
    recording(folder, sparse_cache, spec)
    assert several(sparse_cache, folder)["teacher"]["learned_slope"] == 1.5
    report = several(sparse_cache, folder, strength="constant")
    assert (report["teacher"]["strength"], report["teacher"]["learned_slope"]) == ("constant", None)


def test_a_teacher_of_other_models_is_said_and_not_measured(
    sparse_cache, plain_folder, trio_folders, pairs_file, tmp_path
):
    from conftest import build_options

    other = save(nudged_of(trio_folders["dpo"]), tmp_path / "dpo")
    options = build_options(trio_folders | {"dpo": other}, pairs_file, tmp_path / "cache", top_k=5, max_top_k=12)
    build(options)
    folder = recording(shutil.copytree(plain_folder, tmp_path / "copy"), ShardCache(tmp_path / "cache"))
    report = several(sparse_cache, folder, gain=5)
    expected = "; warning: with another dpo than this cache's, so that teacher is not in it"
    assert report["models"][0]["recorded_text"].endswith(expected)
    assert "divergence_own" not in report["models"][0]["quantities"]


def nudged_of(folder):
    from tiny import load

    return nudged(load(folder), 3, 0.05)


def test_a_teacher_that_the_cache_does_not_serve_is_refused_as_the_yardstick_and_named_otherwise(
    sparse_cache, plain_folder, tmp_path
):
    folder = recording(shutil.copytree(plain_folder, tmp_path / "copy"), sparse_cache, TeacherSpec(gain=40))
    given = {"model": folder, "shards": sparse_cache.folder}
    message = refusal(given)
    assert "expected a gain of 30 or less, got 40" in message and message.endswith("(the teacher is as model records)")
    report = on_cache(sparse_cache, folder, gain=10)
    assert "; warning: not measured: expected a gain of 30 or less, got 40" in report["recorded_text"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": {"gain": -1.0}}, "gain: expected a finite number >= 0, got -1.0"),
        ({"teacher": {"strange": 1}}, "strange"),
        ({"reduction": "sum"}, "a reduction of 'sum'"),
        ({"divergence": "tv"}, "divergence: expected one of"),
        (None, "no 'reduction'"),
    ],
)
def test_a_record_that_says_no_teacher_is_refused_in_one_line(sparse_cache, plain_folder, tmp_path, change, message):
    folder = recording(shutil.copytree(plain_folder, tmp_path / "copy"), sparse_cache)
    facts = {} if change is None else read_json(folder / RECORD_FILE) | change
    (folder / RECORD_FILE).write_text(json.dumps(facts))
    found = refusal({"model": folder, "shards": sparse_cache.folder})
    assert found.startswith(f"{folder}/{RECORD_FILE}: expected the teacher of a student, got ") and message in found


def test_the_table_has_a_line_for_every_model(sparse_cache, students, trio_folders, tmp_path, capsys):
    against = trio_folders["reference"]
    file = tmp_path / "report.json"
    main(["--model", *map(str, students), *flags(against=against, shards=sparse_cache.folder, json=file)])
    text = capsys.readouterr().out
    assert report_text(json.loads(file.read_text())) == text.rstrip("\n")
    lines = text.splitlines()
    names = ["model 1", "model 2", "model 3", "against"]
    first = next(i for i, line in enumerate(lines) if line.startswith("KL to the reference, per token"))
    assert [line[40:49].strip() for line in lines[first : first + 4]] == names
    assert [line.count("±") for line in lines[first : first + 4]] == [2, 2, 2, 1]
    for name in names:
        assert sum(line.startswith(f"implicit reward of {name} ") for line in lines) == 1
    assert max(len(line) for line in lines if "/" not in line) <= 100
