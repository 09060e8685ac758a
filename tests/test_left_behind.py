"""What a killed command leaves behind is known to be ours, and the same command removes it and goes on."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from precompute.rollout.file import SampleFile
from precompute.teachers import folders
from precompute.teachers.before import try_saving
from shards import files
from shards.errors import CacheConflict
from shards.files import make_folder, remove_temporary_files, temporary_name
from shards.modelfiles.whole import surplus
from shards.pipeline.record import Record
from student.runs import checkpoints
from student.train.saving import STAGED, put_in_place, save_evaluation

IDENTITY = {"seed": 0}


class Killed(BaseException):
    """As a signal: nothing catches it."""


def killed_at(patch, owner, name, call):
    """The method ends the process at its call of this number."""
    plain, calls = getattr(owner, name), []

    def stop(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return plain(*args, **kwargs)

    patch.setattr(owner, name, stop)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def checkpoint(out, step):
    folder = out / f"checkpoint-{step}"
    checkpoints.begin(folder, IDENTITY)
    (folder / "model.safetensors").write_text("weights")
    (folder / "optimizer.pt").write_text("moments")
    checkpoints.sign(folder, IDENTITY, weights_only=False)
    return folder


# ---- temporary files


def test_the_temporary_files_of_one_name_are_removed_and_no_others(tmp_path):
    temporary_name(tmp_path, "samples.jsonl").write_text("half")
    temporary_name(tmp_path, "samples.jsonl.identity.json").mkdir()
    for kept in (".other.json.vm-1.aligndistil-tmp", "samples.jsonl", ".samples.jsonl"):
        (tmp_path / kept).write_text("")
    for name in ("samples.jsonl.identity.json", "samples.jsonl"):
        remove_temporary_files(tmp_path, name)
    assert names(tmp_path) == [".other.json.vm-1.aligndistil-tmp", ".samples.jsonl", "samples.jsonl"]
    remove_temporary_files(tmp_path)
    assert names(tmp_path) == [".samples.jsonl", "samples.jsonl"]


def test_a_rollout_removes_what_a_killed_one_left_beside_its_file(tmp_path):
    for name in ("samples.jsonl", "samples.jsonl.identity.json"):
        (tmp_path / f".{name}.vm-1.aligndistil-tmp").write_text("half")
    SampleFile(tmp_path / "samples.jsonl", IDENTITY).begin()
    assert names(tmp_path) == ["samples.jsonl.identity.json", "samples.jsonl.partial"]


def test_a_pipeline_removes_what_a_killed_one_left_of_its_record(tmp_path):
    (tmp_path / ".pipeline.json.vm-1.aligndistil-tmp").write_text("half")
    command = SimpleNamespace(overwrites=False)
    step = SimpleNamespace(name="one", module="m", launch=(), flags={}, outputs=(), command=command)
    Record(tmp_path).add(step, {})
    assert names(tmp_path) == ["pipeline.json"]


def test_a_training_of_a_teacher_removes_what_a_killed_one_left_of_its_trial(tmp_path):
    (tmp_path / ".trial.vm-1.aligndistil-tmp").mkdir()
    model = SimpleNamespace(save_pretrained=lambda folder, **given: folder.mkdir())
    try_saving(model, SimpleNamespace(save_pretrained=lambda folder: None), tmp_path)
    assert names(tmp_path) == []


# ---- folders and checkpoints


def test_the_names_of_new_folders_are_on_the_disk(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(files, "flush", seen.append)
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert sorted(seen) == [tmp_path, tmp_path / "a"]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(None, []), (0, []), (4, []), (3, [1]), (2, [1, 2]), (1, [1, 2, 4])],
)
def test_the_oldest_checkpoints_are_surplus_but_not_the_one_that_was_just_written(limit, expected):
    found = [Path(f"checkpoint-{step}") for step in (1, 2, 3, 4)]  # the last one was never finished
    assert surplus(found, limit, [found[2]]) == [Path(f"checkpoint-{step}") for step in expected]


def test_a_checkpoint_that_was_killed_before_it_named_its_run_is_begun_anew(tmp_path):
    (tmp_path / "checkpoint-1").mkdir()
    temporary_name(tmp_path / "checkpoint-1", "distill_run.json").write_text("{")
    assert checkpoints.newest_whole(tmp_path)[0] is None
    checkpoints.require_all_ours(tmp_path)
    assert checkpoints.newest_whole(tmp_path)[0] is None
    assert checkpoints.fault(checkpoint(tmp_path, 1)) is None


@pytest.mark.parametrize("call", [1, 2])
def test_a_checkpoint_that_was_half_removed_is_known_to_be_ours_and_removed(tmp_path, monkeypatch, call):
    for step in (1, 2, 3):
        checkpoint(tmp_path, step)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, Path, "unlink", call)
        checkpoints.remove_surplus(tmp_path, 2, None, tmp_path / "checkpoint-3")
    assert "checkpoint-1" in names(tmp_path)
    checkpoints.require_all_ours(tmp_path)
    assert checkpoints.newest_whole(tmp_path) == (tmp_path / "checkpoint-3", "")
    checkpoints.remove_unfinished(tmp_path)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3"]


def test_the_best_checkpoint_is_kept(tmp_path):
    for step in (1, 2, 3):
        checkpoint(tmp_path, step)
    checkpoints.remove_surplus(tmp_path, 1, str(tmp_path / "checkpoint-1"), tmp_path / "checkpoint-3")
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-3"]


def test_a_teachers_checkpoint_loses_its_record_first(tmp_path, monkeypatch):
    for step in (1, 2):
        folders.begin_checkpoint(tmp_path / f"checkpoint-{step}")
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").write_text("weights")
        folders.sign_checkpoint(tmp_path / f"checkpoint-{step}", IDENTITY)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, shutil, "rmtree", 1)
        folders.remove_surplus(tmp_path, 1, tmp_path / "checkpoint-2")
    assert names(tmp_path / "checkpoint-1") == ["model.safetensors"]
    assert names(tmp_path / "checkpoint-2") == ["made_from.json", "model.safetensors"]


# ---- the student


def staged(out, *files):
    folder = out / STAGED
    folder.mkdir()
    for file in files:
        (folder / file).write_text(f"new {file}")
    return folder


@pytest.mark.parametrize("call", range(1, 5))
def test_a_student_is_whole_or_has_no_config(tmp_path, monkeypatch, call):
    for file in ("config.json", "model.safetensors", "README.md"):
        (tmp_path / file).write_text("old")
    folder = staged(tmp_path, "config.json", "model.safetensors", "README.md", "tokenizer.json")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, Path, "replace", call)
        put_in_place(folder, tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_weights_in_another_number_of_files_do_not_stay_beside_the_new_ones(tmp_path):
    for file in ("config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "notes.txt"):
        (tmp_path / file).write_text("old")
    put_in_place(staged(tmp_path, "config.json", "model.safetensors"), tmp_path)
    assert names(tmp_path) == ["config.json", "model.safetensors", "notes.txt"]
    assert (tmp_path / "config.json").read_text() == "new config.json"


def test_the_figures_of_an_evaluation_are_whole_and_half_ones_are_not_read(tmp_path):
    (tmp_path / "all_results.json").write_text('{"eval_loss": ')
    args = SimpleNamespace(output_dir=str(tmp_path))
    save_evaluation(SimpleNamespace(is_world_process_zero=lambda: True, args=args), {"eval_loss": 0.5})
    assert json.loads((tmp_path / "all_results.json").read_text()) == {"eval_loss": 0.5}
    assert names(tmp_path) == ["all_results.json", "eval_results.json"]


def test_a_folder_of_others_is_still_refused(tmp_path):
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "model.safetensors").write_text("")
    with pytest.raises(CacheConflict, match=r"expected a checkpoint with distill_run\.json, found none"):
        checkpoints.require_all_ours(tmp_path)
