"""A training stops at a bad step with one line and the step's samples, keeps good checkpoints and saves nothing bad."""

import json
from collections import deque

import pytest
import torch
from stress.resumes.ground import Ground, Order
from stress.resumes.leg import Kind, Layout, Leg, run_leg
from transformers import TrainerCallback

from shards.errors import BadStep
from student.data.responses import CachedResponses
from student.options import DistillArguments
from student.report.run import Run
from student.runs import checkpoints
from student.trainer import DistillTrainer
from student.watch import guarded
from student.watch.spikes import FEW, LEAST, RECENT, WINDOW, Spikes


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return Ground.make(tmp_path_factory.mktemp("ground"))


class Break(TrainerCallback):
    """Does something to the student's weights before or after the step of this number."""

    def __init__(self, step, change, *, after=False):
        self.step, self.change, self.after = step, change, after

    def prepare(self):
        pass

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 == self.step and not self.after:
            self._break(model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step and self.after:
            self._break(model)

    @torch.no_grad()
    def _break(self, model):
        for parameter in model.parameters():
            self.change(parameter)


def poison(parameter):
    parameter.view(-1)[0] = torch.nan


def trainer(ground, out, *callbacks, dropout=False, **flags):
    settings = {
        "shards": ground.caches(1), "output_dir": str(out), "train_on": "both", "use_cpu": True, "report_to": "none",
        "disable_tqdm": True, "num_train_epochs": 3, "save_strategy": "steps", "save_steps": 1, "learning_rate": 0.01,
        "global_batch_size": 8, "per_device_train_batch_size": 4, "record_samples": True,
    }  # fmt: skip
    args = DistillArguments(**settings | flags)
    data = CachedResponses(ground.caches(1), train_on="both")
    evaluated = data if args.eval_shards else None
    return DistillTrainer(ground.student(dropout=dropout), args, data, evaluated, callbacks=list(callbacks))


def stopped(ground, out, *callbacks, **flags):
    """The line of a run that stops, and its file."""
    with pytest.raises(BadStep) as caught:
        trainer(ground, out, *callbacks, **flags).train()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value), json.loads((out / "stopped.json").read_text())


def kept(out):
    folders = checkpoints.checkpoints_of(out)
    assert all(checkpoints.fault(folder) is None for folder in folders)
    return sorted(checkpoints.step_of(folder) for folder in folders)


@pytest.mark.parametrize("every", [1, 4])
def test_a_nan_stops_the_run_names_its_samples_and_keeps_the_last_good_checkpoints(ground, tmp_path, every):
    """Also where only every fourth step is logged: then the step is noticed late, but before it is saved."""
    line, found = stopped(
        ground, tmp_path, Break(6, poison), save_total_limit=1, logging_steps=every, save_steps=min(every, 3)
    )
    assert line.startswith(
        "step 6: expected a finite loss and gradient, got loss nan, gradient norm nan; kept checkpoint-"
    )
    assert kept(tmp_path) == ([4, 5] if every == 1 else [3])
    samples = [sample for part in found["micro_batches"] for sample in part["samples"]]
    order = Order.of(ground.caches(1), None)
    assert [(0, sample["row"]) for sample in samples] == order.places[6]
    assert all(f"{sample['row']} ({sample['sample_id']})" in line for sample in samples)
    assert f"python -m shards.inspect {ground.caches(1)[0]} --row {samples[0]['row']}" in line
    assert (found["step"], found["loss"]) == (6, "nan")
    log = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert max(entry["step"] for entry in log) == 6, "the line of the bad step is in the log"
    assert Run.read(tmp_path) is not None


def test_the_same_command_goes_on_and_a_healthy_run_leaves_no_word_of_a_stop(ground, tmp_path):
    stopped(ground, tmp_path / "broken", Break(5, poison))
    trainer(ground, tmp_path / "broken").train(resume_from_checkpoint=True)
    trainer(ground, tmp_path / "whole").train()
    for name in ("model.safetensors", "optimizer.pt"):
        one, other = ((tmp_path / run / "checkpoint-9" / name).read_bytes() for run in ("broken", "whole"))
        assert one == other
    assert not (tmp_path / "broken" / "stopped.json").exists()
    assert (tmp_path / "broken" / "samples.jsonl").read_text() == (tmp_path / "whole" / "samples.jsonl").read_text()


def test_weights_that_a_good_step_left_not_finite_are_not_saved(ground, tmp_path):
    line, _ = stopped(ground, tmp_path, Break(5, poison, after=True))
    assert line.startswith(
        "step 5: expected finite weights after it, got NaN or infinity in model.embed_tokens.weight and"
    )
    assert kept(tmp_path) == [1, 2, 3, 4]
    line, _ = stopped(ground, tmp_path / "last", Break(9, poison, after=True), save_strategy="no")
    assert line.startswith("step 9: expected finite weights after it") and "; saved nothing; its samples" in line


def test_one_bad_row_is_in_the_micro_batch_that_is_named_first(ground, tmp_path):
    keys = Order.of(ground.caches(1), None).keys
    bad = keys[2][6]
    made = trainer(ground, tmp_path)
    plain = made.data_collator

    def poisoned(batch):
        found = plain(batch)
        if any(",".join(map(str, row.input_ids.tolist())) == bad for row in batch.tokens):
            found["teacher_tail"][:] = torch.nan
        return found

    made.data_collator = poisoned
    with pytest.raises(BadStep, match=r"^step 2: "):
        made.train()
    found = json.loads((tmp_path / "stopped.json").read_text())["micro_batches"]
    assert found[0]["loss"] == "nan" and not isinstance(found[1]["loss"], str)


def test_the_best_model_is_not_one_of_a_bad_step(ground, tmp_path):
    flags = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "eval_shards": ground.caches(1)}
    made = trainer(ground, tmp_path, Break(5, poison), **flags, metric_for_best_model="loss")
    with pytest.raises(BadStep):
        made.train()
    assert made.state.best_global_step <= 4 and kept(tmp_path)[-1] == 4


def test_a_spike_of_the_loss_or_gradient_stops_the_run_unless_that_is_switched_off(ground, tmp_path, monkeypatch):
    monkeypatch.setattr("student.watch.spikes.LEAST", 2)
    monkeypatch.setattr("student.watch.spikes.RECENT", 1)
    plain = DistillTrainer.compute_loss

    def compute_loss(self, *args, **kwargs):
        return plain(self, *args, **kwargs) * (1000 if self.state.global_step == 5 else 1)

    monkeypatch.setattr(DistillTrainer, "compute_loss", compute_loss)
    line, _ = stopped(ground, tmp_path / "on")
    assert line.startswith("step 6: expected a gradient norm of at most ") and "(--spike_factor 10), got loss " in line
    assert kept(tmp_path / "on")[-1] == 5
    made = trainer(ground, tmp_path / "off", stop_on_spike=False)
    made.train()
    assert made.state.global_step == 9
    assert trainer(ground, tmp_path / "off", spike_factor=1e9).train(resume_from_checkpoint=False)


def test_a_rate_that_explodes_stops_the_run(ground, tmp_path):
    line, _ = stopped(ground, tmp_path, learning_rate=1e37, optim="sgd", warmup_steps=0, lr_scheduler_type="constant")
    assert "expected finite weights" in line or "expected a finite loss" in line


def test_a_collapsing_loss_scale_stops_a_run_in_fp16_and_skipped_steps_do_not(ground, tmp_path, monkeypatch):
    made = trainer(ground, tmp_path / "skips", fp16=True, save_strategy="no")
    made.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    made.train()
    assert sum(entry.get("skipped_steps", 0) for entry in made.state.log_history) > 2
    monkeypatch.setattr(guarded, "LEAST_LOSS_SCALE", 2.0**38)
    made = trainer(ground, tmp_path / "ends", fp16=True, save_strategy="no")
    made.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    with pytest.raises(BadStep, match=r"^step 3: expected a loss scale of 2.74878e\+11 or more, got 1.37439e\+11; "):
        made.train()


def test_two_ranks_stop_together_and_say_the_same(ground, tmp_path):
    """One of them alone has a NaN, before the gradients are summed."""

    class OnOne(TrainerCallback):
        def prepare(self):
            plain = DistillTrainer.compute_loss

            def compute_loss(self, model, inputs, *args, **kwargs):
                bad = self.args.process_index == 1 and self.state.global_step == 4
                return plain(self, model, inputs, *args, **kwargs) * (torch.nan if bad else 1)

            DistillTrainer.compute_loss = compute_loss

    kind = Kind(caches=1, window=None, bf16=False, dropout=False, optim="adamw_torch", rates="cosine_with_min_lr")
    leg = Leg(layout=Layout(micro=2, ranks=2), workers=0, persistent=False, save_every=1, stop=None)
    ends = run_leg(ground, kind, leg, tmp_path, tmp_path / "log", {"callbacks": [OnOne()]})
    assert [end.code for end in ends] == [2, 2], ends[0].err
    lines = [[line for line in end.err.splitlines() if line.startswith("error: step 5: ")] for end in ends]
    assert lines[0] == lines[1] and len(lines[0]) == 1 and kept(tmp_path)[-1] == 4
    found = json.loads((tmp_path / "stopped.json").read_text())["micro_batches"]
    assert {part["rank"] for part in found} == {0, 1}
    rows = {sample["row"] for part in found for sample in part["samples"]}
    assert rows == {row for _, row in Order.of(ground.caches(1), None).places[5]}


def test_a_spike_is_over_the_largest_value_of_the_window_and_not_of_the_newest():
    spikes = Spikes(10.0)
    spikes.remember([1.0] * (FEW + RECENT - 1))
    assert spikes.limit is None, "too few to compare with"
    spikes.remember([1.0] * (LEAST - FEW))
    assert spikes.limit == 100.0, "few to compare with"
    spikes.remember([1.0, *[8.0] * RECENT])
    assert spikes.limit == 10.0, "a rise over a few steps is compared with the time before it"
    spikes.remember([8.0])
    assert spikes.limit == 80.0
    spikes.remember([0.0] * (WINDOW + RECENT))
    assert spikes.limit == pytest.approx(1e-5), "a student that is the teacher"
    assert Spikes(None, deque([1.0] * 200)).limit is None


def test_a_resumed_run_compares_with_the_steps_before_its_checkpoint(ground, tmp_path):
    trainer(ground, tmp_path).train()
    made = trainer(ground, tmp_path)
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    log = [entry for entry in made.state.log_history if "grad_norm" in entry]
    assert [*made._spikes["loss"].values] == pytest.approx([entry["loss"] for entry in log])
    assert len(log) == 9
