"""student.train in half precision: on a CPU as on a GPU, resumed bit for bit, equal on two ranks, and said."""

from types import SimpleNamespace

import pytest
import torch
from test_training import arguments, launch, moved, plain_sgd, recipe, same_weights, student_folder, weights
from transformers import TrainerCallback

from shards.errors import BadStep, NonFiniteLogits, OptionError
from student.loss.forward import DistillForward
from student.options import DistillArguments
from student.precision import choose_autocast, precision_text
from student.train import __main__ as command
from student.train.__main__ import train

HALF = ["fp16", "bf16"]
ROUNDING = {"fp16": 0.02, "bf16": 0.15}
"""Largest relative change of a step of the tiny student; 0.9% and 7% were seen."""
__all__ = ["student_folder"]  # a fixture


@pytest.mark.parametrize("half", HALF)
@pytest.mark.parametrize("use_peft", [False, True], ids=["whole", "lora"])
def test_a_run_in_half_precision_resumes_bit_for_bit(sparse_cache, student_folder, tmp_path, half, use_peft):
    settings = recipe(num_train_epochs=1, use_peft=use_peft, **{half: True})
    train(arguments(sparse_cache, student_folder, tmp_path / "unbroken", **settings))
    checkpoint = tmp_path / "unbroken" / "checkpoint-3"
    assert (checkpoint / "scaler.pt").is_file() == (half == "fp16")
    train(arguments(sparse_cache, student_folder, tmp_path / "b", resume_from_checkpoint=str(checkpoint), **settings))
    assert same_weights(tmp_path / "b", tmp_path / "unbroken")


def test_a_resumed_run_has_the_scale_of_its_checkpoint(sparse_cache, student_folder, tmp_path):
    settings = recipe(num_train_epochs=1, fp16=True)
    train(arguments(sparse_cache, student_folder, tmp_path / "a", **settings))
    scaler = tmp_path / "a" / "checkpoint-3" / "scaler.pt"
    state = torch.load(scaler)
    state["scale"] = 1024.0
    size = scaler.stat().st_size
    torch.save(state, scaler)
    assert scaler.stat().st_size == size
    folder = str(scaler.parent)
    resumed = train(arguments(sparse_cache, student_folder, tmp_path / "b", resume_from_checkpoint=folder, **settings))
    assert [entry["loss_scale"] for entry in resumed.state.log_history if "loss_scale" in entry][-1] == 1024.0


@pytest.mark.parametrize("half", HALF)
def test_a_step_in_half_precision_is_near_the_step_in_float32_and_any_split_of_it_nearer(
    sparse_cache, student_folder, tmp_path, half
):
    steps = {}
    for name, settings in {
        "float32": {},
        "whole": {half: True},
        "split": {half: True, "per_device_train_batch_size": 3},
    }.items():
        train(arguments(sparse_cache, student_folder, tmp_path / name, **plain_sgd(**settings)))
        steps[name] = moved(weights(student_folder), weights(tmp_path / name))
    size = steps["float32"].norm()
    rounding = ROUNDING[half]
    assert 0 < (steps["whole"] - steps["float32"]).norm() < rounding * size
    assert (steps["whole"] - steps["split"]).norm() < rounding * size


@pytest.mark.parametrize("half", HALF)
def test_two_ranks_in_half_precision_give_what_one_process_gives(sparse_cache, student_folder, tmp_path, half):
    common = {"num_train_epochs": 1, "save_strategy": "no", "global_batch_size": 12, half: "true"}
    two = launch(sparse_cache, student_folder, tmp_path / "two", per_device_train_batch_size=2, **common)
    settings = plain_sgd(max_steps=-1, per_device_train_batch_size=4) | common | {half: True}
    one = train(arguments(sparse_cache, student_folder, tmp_path / "one", **settings)).state.log_history
    for mine, theirs in zip(one[:-1], two[:-1], strict=True):
        for name in ("loss", "kl_teacher", "low_strength_gradient_share"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-2), name
        assert theirs.get("loss_scale") == mine.get("loss_scale")
    steps = [moved(weights(student_folder), weights(tmp_path / name)) for name in ("one", "two")]
    assert (steps[0] - steps[1]).norm() < ROUNDING[half] * steps[0].norm()


class Watch(TrainerCallback):
    """Keeps the weights and the next rate after every step."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, model=None, lr_scheduler=None, **kwargs):
        self.seen.append(
            (torch.cat([p.detach().flatten().clone() for p in model.parameters()]), lr_scheduler.get_last_lr())
        )


def test_a_skipped_step_leaves_weights_and_schedule_and_is_logged_with_its_loss(
    sparse_cache, student_folder, tmp_path, monkeypatch
):
    watch, plain = Watch(), command.DistillTrainer

    def scaled_too_far(**kwargs):
        trainer = plain(callbacks=[watch], **kwargs)
        trainer.accelerator.scaler._init_scale = 2.0**26
        return trainer

    monkeypatch.setattr(command, "DistillTrainer", scaled_too_far)
    trainer = train(
        arguments(sparse_cache, student_folder, tmp_path, **recipe(num_train_epochs=2, warmup_steps=0, fp16=True))
    )
    logged = [entry for entry in trainer.state.log_history if "loss_scale" in entry]
    skipped = [entry["skipped_steps"] for entry in logged]
    assert skipped[0] == 1 and 0 in skipped, "the scale was too large at first, and then small enough"
    for step in range(1, len(logged)):
        (before, rate_before), (after, rate_after) = watch.seen[step - 1 : step + 1]
        assert torch.equal(before, after) == (rate_before == rate_after) == bool(skipped[step])
        assert logged[step]["loss_scale"] == logged[step - 1]["loss_scale"] / (2 if skipped[step] else 1)
    assert all(0 < entry["loss"] < 100 and 0 < entry["kl_teacher"] < 100 for entry in logged)


def test_a_body_that_leaves_float16s_range_ends_the_run_in_one_line(sparse_cache, trio, tmp_path, monkeypatch):
    """At the start; if it only does so for some tokens, at the step."""
    from tiny import nudged, save

    model = nudged(trio["reference"], 7, 0.1)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1e6)
    folder = save(model, tmp_path / "wide")
    with pytest.raises(
        NonFiniteLogits, match=r"^student: expected finite logits .* in float16, .* give --bf16 true, or "
    ):
        train(arguments(sparse_cache, folder, tmp_path / "out", **plain_sgd(fp16=True)))
    monkeypatch.setattr(DistillForward, "_check_head", lambda self: None)
    with pytest.raises(
        BadStep, match=r"^step 1: expected a finite loss and gradient, got loss nan under fp16 autocast; "
    ):
        train(arguments(sparse_cache, folder, tmp_path / "out", **plain_sgd(fp16=True)))


@pytest.mark.parametrize(
    ("gpu", "given", "expected"),
    [
        (True, {}, "fp16 autocast with loss scaling (the default on a GPU), weights in float32"),
        (True, {"fp16": True}, "fp16 autocast with loss scaling, weights in float32"),
        (True, {"bf16": True}, "bf16 autocast, weights in float32; it turns the gradient several times as much as "),
        (True, {"fp16": False}, "float32"),
        (True, {"bf16": False, "tf32": True}, "float32 with TF32 products"),
        (False, {}, "float32 (the default on a CPU)"),
        (False, {"fp16": True}, "fp16 autocast with loss scaling, weights in float32"),
    ],
)  # fmt: skip
def test_the_plan_says_the_precision_and_whether_it_is_the_default(monkeypatch, gpu, given, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    options = SimpleNamespace(**{"fp16": None, "bf16": None, "tf32": None, "use_cpu": False} | given)
    options.device = torch.device("cuda" if gpu else "cpu")
    choose_autocast(options)
    assert precision_text(options).startswith(expected)


@pytest.mark.parametrize("half", [None, *HALF])
def test_what_is_tried_at_the_start_runs_in_the_runs_autocast(
    sparse_cache, student_folder, tmp_path, monkeypatch, half
):
    """Flash attention takes half precision only, so float32 weights need it there too."""
    seen, check = [], DistillForward._check_head

    def recorded(self):
        seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        check(self)

    monkeypatch.setattr(DistillForward, "_check_head", recorded)
    settings = plain_sgd(max_steps=1, **({half: True} if half else {}))
    train(arguments(sparse_cache, student_folder, tmp_path, **settings))
    assert seen[0] == {None: None, "fp16": torch.float16, "bf16": torch.bfloat16}[half]


def test_both_half_precisions_at_once_are_refused(tmp_path):
    with pytest.raises(OptionError, match="fp16 and bf16"):
        DistillArguments(output_dir=str(tmp_path), use_cpu=True, fp16=True, bf16=True)
