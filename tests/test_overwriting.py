"""A run over the folder of another one: the other's checkpoints are removed first, foreign folders stay."""

from pathlib import Path

import pytest
from test_training import arguments, recipe, same_weights
from tiny import nudged, save

from shards.errors import AlignDistilError
from student.runs import checkpoints
from student.runs.resumable import ResumableTrainer
from student.train.__main__ import train


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def run(sparse_cache, trio, tmp_path_factory):
    """Train into a folder: three steps, each with a checkpoint."""
    student = save(nudged(trio["reference"], 7, 0.1), tmp_path_factory.mktemp("student"))

    def of(out, **overrides):
        given = {"global_batch_size": 8, "per_device_train_batch_size": 8, "num_train_epochs": 1, "warmup_steps": 0}
        return train(arguments(sparse_cache, student, out, **recipe(**given | overrides)))

    return of


@pytest.fixture(scope="module")
def unbroken(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    run(out)
    return out


def kill_after_the_first_checkpoint(run, out, monkeypatch, **overrides):
    plain = ResumableTrainer._save_checkpoint

    def killed(*args):
        plain(*args)
        raise Killed

    monkeypatch.setattr(ResumableTrainer, "_save_checkpoint", killed)
    with pytest.raises(Killed):
        run(out, overwrite_output_dir=True, **overrides)
    monkeypatch.undo()


@pytest.mark.parametrize("earlier", [{"gain": 5.0}, {"max_steps": 2}], ids=str)
def test_a_killed_run_over_another_ones_folder_goes_on_from_its_own(run, unbroken, tmp_path, monkeypatch, earlier):
    run(tmp_path, **earlier)
    kill_after_the_first_checkpoint(run, tmp_path, monkeypatch)
    assert checkpoints.checkpoints_of(tmp_path) == [tmp_path / "checkpoint-1"]
    run(tmp_path, resume_from_checkpoint="true")
    assert same_weights(unbroken, tmp_path)


def test_a_kill_while_earlier_checkpoints_are_removed_leaves_none_to_go_on_from(run, unbroken, tmp_path, monkeypatch):
    run(tmp_path, gain=5.0)
    calls = []

    def unlink(path, **given):
        calls.append(path.name)
        if len(calls) == 3:
            raise Killed
        plain(path, **given)

    plain = Path.unlink
    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(Killed):
        checkpoints.remove_all(tmp_path)
    monkeypatch.undo()
    assert checkpoints.newest_whole(tmp_path)[0] is None
    run(tmp_path, resume_from_checkpoint="true", overwrite_output_dir=True)
    assert same_weights(unbroken, tmp_path)


def test_a_run_that_goes_on_keeps_its_checkpoints(run, unbroken, tmp_path, monkeypatch):
    kill_after_the_first_checkpoint(run, tmp_path, monkeypatch)
    run(tmp_path, resume_from_checkpoint="true", overwrite_output_dir=True)
    assert [folder.name for folder in checkpoints.checkpoints_of(tmp_path)] == [f"checkpoint-{n}" for n in (3, 2, 1)]
    assert same_weights(unbroken, tmp_path)


@pytest.mark.parametrize("name", ["checkpoint-2", "checkpoint-99", "checkpoint-best"])
def test_a_strangers_folder_is_refused_before_the_first_step(run, tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("years of work")
    monkeypatch.setattr(ResumableTrainer, "_run_epoch", lambda *args, **given: pytest.fail("made a step"))
    with pytest.raises(AlignDistilError) as caught:
        run(tmp_path, overwrite_output_dir=True, save_total_limit=1)
    assert str(caught.value).startswith(f"{tmp_path / name}: expected a checkpoint with distill_run.json, found none")
    assert (tmp_path / name / "thesis.txt").read_text() == "years of work"


def test_a_strangers_folder_that_came_meanwhile_is_not_removed(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(AlignDistilError, match="expected a checkpoint with"):
        checkpoints.begin(tmp_path, {})
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
