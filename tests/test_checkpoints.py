"""A run can be killed at any time: it resumes from its newest complete checkpoint and does exactly its steps."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from test_training import arguments, launch, plain_sgd, recipe, same_weights
from tiny import load, make_llama, nudged, save
from transformers import TrainerCallback

from shards.errors import AlignDistilError
from student.data.responses import CachedResponses
from student.runs import checkpoints
from student.runs.identity import weights_sha256
from student.runs.resumable import ResumableTrainer
from student.runs.schedule import rates
from student.train.__main__ import train
from student.trainer import DistillTrainer


@pytest.fixture(scope="module")
def student_folder(trio, tmp_path_factory):
    return save(nudged(trio["reference"], 7, 0.1), tmp_path_factory.mktemp("student"))


def settings(**overrides):
    """Two epochs of three steps, each with a checkpoint."""
    return recipe(global_batch_size=8, per_device_train_batch_size=8) | overrides


@pytest.fixture(scope="module")
def finished(sparse_cache, student_folder, tmp_path_factory):
    """An unbroken run of six steps, with all its checkpoints."""
    out = tmp_path_factory.mktemp("finished")
    train(arguments(sparse_cache, student_folder, out, **settings()))
    return out


@pytest.fixture
def copy(finished, tmp_path):
    """The run as after a kill between the last checkpoint and the final save."""
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    (out / "model.safetensors").unlink()
    return out


def resume(cache, student, out, wanted="true", **overrides):
    return train(arguments(cache, student, out, resume_from_checkpoint=str(wanted), **settings(**overrides)))


def refusal(call):
    with pytest.raises(AlignDistilError) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("steps", [{"num_train_epochs": 2}, {"num_train_epochs": 1.5}, {"max_steps": 2}], ids=str)
def test_a_finished_run_is_saved_again_and_trained_no_further(sparse_cache, student_folder, finished, tmp_path, steps):
    count = {2: 6, 1.5: 5}[steps["num_train_epochs"]] if "num_train_epochs" in steps else 2
    unbroken = tmp_path / "unbroken"
    first = train(arguments(sparse_cache, student_folder, unbroken, **settings(**steps)))
    assert first.state.global_step == count
    shutil.copytree(unbroken, tmp_path / "again")
    for _ in range(2 if "max_steps" in steps else 1):
        again = resume(sparse_cache, student_folder, tmp_path / "again", **steps)
        assert again.state.global_step == count
        assert same_weights(unbroken, tmp_path / "again")
        losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (first, again)]
        assert losses[0] == losses[1]
        assert not any("train_loss" in entry for entry in again.state.log_history), "a mean over no steps"


def test_a_run_killed_between_its_last_checkpoint_and_the_final_save(sparse_cache, student_folder, finished, copy):
    assert resume(sparse_cache, student_folder, copy).state.global_step == 6
    assert same_weights(finished, copy)


def files_of(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_each_file_of_a_checkpoint_is_missed(finished, tmp_path, damage):
    whole = finished / "checkpoint-6"
    assert checkpoints.fault(whole) is None
    assert {"distill_run.json", "optimizer.pt", "model.safetensors", "trainer_state.json"} <= set(files_of(whole))
    for name in files_of(whole):
        folder = Path(shutil.copytree(whole, tmp_path / name))
        content = (folder / name).read_bytes()
        (folder / name).unlink() if damage == "missing" else (folder / name).write_bytes(content[: len(content) // 2])
        assert name in checkpoints.fault(folder), name


def test_a_run_goes_on_from_the_newest_whole_checkpoint_and_says_so(
    sparse_cache, student_folder, finished, copy, capsys
):
    (copy / "checkpoint-6" / "optimizer.pt").unlink()
    (copy / "checkpoint-5" / "distill_run.json").write_text("{")
    resume(sparse_cache, student_folder, copy)
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "resumed after checkpoint-4; checkpoint-6 is left aside: expected a whole checkpoint, found no optimizer.pt"
        in printed
    )
    assert "checkpoint-5 is left aside: expected a whole checkpoint, got " in printed
    assert same_weights(finished, copy)
    assert checkpoints.newest_whole(copy) == (copy / "checkpoint-6", "")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("writer", ["save_model", "_save_rng_state", "sign"])
def test_a_kill_in_any_stage_of_a_checkpoint(sparse_cache, student_folder, finished, tmp_path, monkeypatch, writer):
    """At the second checkpoint: before it is written, in the middle, and before it is marked as complete."""
    owner = checkpoints if writer == "sign" else ResumableTrainer
    plain = getattr(owner, writer)
    calls = []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return plain(*args, **kwargs)

    monkeypatch.setattr(owner, writer, killed)
    with pytest.raises(Killed):
        train(arguments(sparse_cache, student_folder, tmp_path, **settings(save_total_limit=1)))
    monkeypatch.undo()
    assert checkpoints.newest_whole(tmp_path)[0] == tmp_path / "checkpoint-1", (
        "the old one is there till the new is whole"
    )
    resume(sparse_cache, student_folder, tmp_path, save_total_limit=1)
    assert same_weights(finished, tmp_path)
    assert [path.name for path in checkpoints.checkpoints_of(tmp_path)] == ["checkpoint-6"]


def test_a_kill_in_the_first_checkpoint_begins_anew(sparse_cache, student_folder, finished, copy, capsys):
    for folder in checkpoints.checkpoints_of(copy)[:-1]:
        shutil.rmtree(folder)
    signed = json.loads((copy / "checkpoint-1" / "distill_run.json").read_text()) | {"files": None}
    (copy / "checkpoint-1" / "distill_run.json").write_text(json.dumps(signed))
    (copy / "config.json").unlink()
    resume(sparse_cache, student_folder, copy)
    assert "resumed  from the first step; checkpoint-1 is left aside: " in capsys.readouterr().out
    assert same_weights(finished, copy)


def test_what_a_killed_run_left_is_removed_when_the_next_one_goes_on(sparse_cache, student_folder, finished, copy):
    for step, signed in ((2, {"files": None}), (5, {"files": None})):
        (copy / f"checkpoint-{step}" / "distill_run.json").write_text(json.dumps(signed))
    (copy / ".trial.vm-1.aligndistil-tmp").mkdir()
    (copy / ".trainer_state.json.vm-1.aligndistil-tmp").write_text("{")
    resume(sparse_cache, student_folder, copy)
    assert files_of(copy) == sorted({*files_of(finished)} - {"checkpoint-2", "checkpoint-5"})
    assert same_weights(finished, copy)


def test_checkpoints_of_others_are_not_written_over(sparse_cache, student_folder, copy):
    for folder in checkpoints.checkpoints_of(copy):
        (folder / "distill_run.json").unlink()
    message = refusal(lambda: resume(sparse_cache, student_folder, copy))
    assert message.startswith(
        f"{copy}: expected a checkpoint to resume from; checkpoint-6 is left aside: expected a whole checkpoint, found "
        "no distill_run.json; checkpoint-5 "
    )


def test_a_damaged_checkpoint_that_is_named_is_refused(sparse_cache, student_folder, copy):
    folder = copy / "checkpoint-3"
    (folder / "scheduler.pt").unlink()
    assert refusal(lambda: resume(sparse_cache, student_folder, copy, wanted=folder)) == (
        f"{folder}: expected a whole checkpoint, found no scheduler.pt"
    )


def test_a_checkpoint_past_the_end_of_the_run_is_refused(sparse_cache, student_folder, copy):
    assert refusal(lambda: resume(sparse_cache, student_folder, copy, max_steps=4)) == (
        f"{copy}/checkpoint-6: expected a checkpoint of the run's 4 steps, got one of step 6"
    )


def test_a_checkpoint_of_weights_alone_is_refused(sparse_cache, student_folder, tmp_path):
    train(
        arguments(sparse_cache, student_folder, tmp_path, **settings(max_steps=1, warmup_steps=0, save_only_model=True))
    )
    folder = tmp_path / "checkpoint-1"
    for wanted in (folder, "true"):
        message = refusal(
            lambda wanted=wanted: resume(sparse_cache, student_folder, tmp_path, wanted, max_steps=2, warmup_steps=0)
        )
        assert message.endswith("expected a whole checkpoint, got weights alone (--save_only_model true)")


@pytest.mark.parametrize("use_peft", [False, True])
def test_a_run_does_not_go_on_from_another_student(sparse_cache, student_folder, tmp_path, use_peft):
    other = save(make_llama(9), tmp_path / "other")
    common = {"use_peft": use_peft, "lora_r": 2, "max_steps": 2, "save_steps": 1}
    train(arguments(sparse_cache, student_folder, tmp_path / "run", **settings(**common)))
    checkpoint = tmp_path / "run" / "checkpoint-1"
    assert refusal(lambda: resume(sparse_cache, other, tmp_path / "b", checkpoint, **common)).startswith(
        f'{checkpoint}: is of another run, model: expected "'
    )
    resume(sparse_cache, student_folder, tmp_path / "c", checkpoint, **common)
    assert same_weights(tmp_path / "run", tmp_path / "c")


def test_the_weights_that_a_student_starts_from_are_known_whatever_adapters_lie_over_them(student_folder):
    peft = pytest.importorskip("peft")
    kinds = [peft.LoraConfig(r=2, target_modules=where, init_lora_weights=False) for where in (["q_proj"], ["up_proj"])]
    adapted = [peft.get_peft_model(load(student_folder), config) for config in (*kinds, *kinds)]
    assert {weights_sha256(model) for model in adapted} == {weights_sha256(load(student_folder))}


def test_from_python_too(sparse_cache, student_folder, finished, copy):
    (copy / "checkpoint-6" / "optimizer.pt").unlink()

    def trainer(folder):
        args = arguments(sparse_cache, student_folder, copy, **settings())
        return DistillTrainer(load(folder), args, CachedResponses([sparse_cache.folder], train_on="both"))

    trained = trainer(student_folder)
    trained.train(resume_from_checkpoint=True)
    assert trained.state.global_step == 6
    after = load(finished).state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in trained.model.state_dict().items())
    assert "model: expected" in refusal(lambda: trainer(finished).train(resume_from_checkpoint=True))


def test_a_checkpoint_is_whole_when_it_is_uploaded(sparse_cache, student_folder, tmp_path, monkeypatch):
    args = arguments(sparse_cache, student_folder, tmp_path, **settings(max_steps=2, save_total_limit=1))
    trainer = DistillTrainer(load(student_folder), args, CachedResponses([sparse_cache.folder], train_on="both"))
    args.push_to_hub, faults = True, []
    monkeypatch.setattr(
        DistillTrainer, "_push_from_checkpoint", lambda self, folder: faults.append(checkpoints.fault(Path(folder)))
    )
    trainer.train()
    assert faults == [None, None]
    saved = torch.load(tmp_path / "checkpoint-2" / "training_args.bin", weights_only=False)
    assert (saved.save_total_limit, saved.push_to_hub) == (1, True)


def test_two_ranks_in_bf16_leave_a_checkpoint_aside_that_one_of_them_did_not_write(
    sparse_cache, student_folder, tmp_path
):
    flags = {
        "global_batch_size": 8, "per_device_train_batch_size": 4, "max_steps": 2, "save_steps": 1, "bf16": "true",
        "optim": "adamw_torch", "learning_rate": 0.05, "resume_from_checkpoint": "true",
    }  # fmt: skip
    launch(sparse_cache, student_folder, tmp_path / "run", **flags)
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    (tmp_path / "again" / "checkpoint-2" / "rng_state_1.pth").unlink()
    log = launch(sparse_cache, student_folder, tmp_path / "again", **flags)
    assert (tmp_path / "again" / "checkpoint-2" / "rng_state_1.pth").is_file(), "the second step was made again"
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2]
    assert same_weights(tmp_path / "run", tmp_path / "again")


def test_two_runs_of_one_seed_write_the_same_identity(finished, sparse_cache, student_folder, tmp_path):
    train(arguments(sparse_cache, student_folder, tmp_path, **settings(max_steps=2) | plain_sgd(max_steps=1)))
    mine, theirs = (
        json.loads((folder / "checkpoint-1" / "distill_run.json").read_text()) for folder in (tmp_path, finished)
    )
    assert mine["model"] == theirs["model"]
    assert mine["optim"] != theirs["optim"]


def test_a_run_that_is_made_longer_has_the_rates_of_its_new_length(
    finished, sparse_cache, student_folder, tmp_path, monkeypatch
):
    used = []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, *args, optimizer=None, **given):
            used.append(optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(
        "student.train.__main__.DistillTrainer", lambda **given: DistillTrainer(callbacks=[Watch()], **given)
    )
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    longer = resume(sparse_cache, student_folder, out, num_train_epochs=3)
    logged = {entry["step"]: entry["learning_rate"] for entry in longer.state.log_history if "learning_rate" in entry}
    expected = rates(longer.args, 9)
    assert [logged[step] for step in (7, 8, 9)] == used == pytest.approx(expected[6:])


def test_the_intervals_that_are_given_on_a_resume_count(finished, sparse_cache, student_folder, tmp_path):
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    for step in (3, 4, 5, 6):
        shutil.rmtree(out / f"checkpoint-{step}")
    resume(sparse_cache, student_folder, out, save_steps=4)
    assert sorted(path.name for path in out.glob("checkpoint-*")) == [f"checkpoint-{step}" for step in (1, 2, 4, 6)]
