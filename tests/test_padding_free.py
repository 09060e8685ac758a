"""student.train --padding_free: what padded training gives, up to rounding; bodies that cannot do it are refused."""

import json
from types import SimpleNamespace

import pytest
import torch
from test_training import arguments, moved, plain_sgd, recipe, same_weights, student_folder, weights
from tiny import load, make_tokenizer, save
from transformers import MambaConfig, MambaForCausalLM
from transformers.models.llama.modeling_llama import LlamaModel

from shards.errors import CacheConflict, ModelError, NonFiniteLogits
from shards.modelfiles.precision import rounding_apart
from student.data.responses import CachedResponses
from student.loss.rows import in_one, padded, require_padding_free, response_states
from student.precision import rounding_of
from student.train.__main__ import train
from student.trainer import DistillTrainer

__all__ = ["student_folder"]  # a fixture
REFUSED = r"^student: expected [^\n]*; leave --padding_free out$"


@pytest.fixture
def both_ways(sparse_cache, student_folder, tmp_path):
    """Trains with padding and without. Returns the first loss, the last one's evaluation, and the move of both."""

    def run(**settings):
        found = []
        for free in (False, True):
            out = tmp_path / str(free)
            log = train(arguments(sparse_cache, student_folder, out, padding_free=free, **settings)).state.log_history
            evaluated = next((entry["eval_loss"] for entry in log if "eval_loss" in entry), None)
            found.append((log[0]["loss"], evaluated, moved(weights(student_folder), weights(out))))
        return found

    return run


@pytest.mark.parametrize(
    ("size", "batch", "attention"),
    [(24, 24, "sdpa"), (3, 24, "sdpa"), (5, 25, "sdpa"), (5, 25, "eager")],
    ids=["at once", "accumulated", "with a row of weight zero", "in eager attention"],
)
def test_loss_and_gradient_are_those_of_padded_rows(both_ways, size, batch, attention):
    settings = plain_sgd(global_batch_size=batch, per_device_train_batch_size=size, attn_implementation=attention)
    (loss, _, step), (free_loss, _, free_step) = both_ways(**settings)
    assert free_loss == pytest.approx(loss, rel=1e-5)
    assert 0 < (free_step - step).norm() < 1e-4 * step.norm()  # another order of sums, so it was run in another way


def test_an_evaluation_without_padding_is_that_of_padded_rows(both_ways, sparse_cache):
    evaluation = {"eval_shards": [str(sparse_cache.folder)], "per_device_eval_batch_size": 5}
    (_, padded_loss, _), (_, loss, _) = both_ways(**plain_sgd(learning_rate=0.0), **evaluation)
    assert loss == pytest.approx(padded_loss, rel=1e-5)


@pytest.mark.parametrize("more", [{"activation_checkpointing": True}, {"use_peft": True, "lora_r": 4}])
def test_checkpointed_layers_and_adapters_get_the_rows_limits(both_ways, more):
    (loss, _, step), (free_loss, _, free_step) = both_ways(**plain_sgd(per_device_train_batch_size=3, **more))
    assert free_loss == pytest.approx(loss, rel=1e-5)
    assert 0 < (free_step - step).norm() < 1e-4 * step.norm()


@pytest.mark.parametrize(("half", "rounding"), [("fp16", 0.02), ("bf16", 0.15)])
def test_a_step_in_half_precision_is_the_padded_one_up_to_its_rounding(both_ways, half, rounding):
    (_, _, step), (_, _, free_step) = both_ways(**plain_sgd(per_device_train_batch_size=3, **{half: True}))
    assert (free_step - step).norm() < rounding * step.norm()


def mamba(folder):
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=18, hidden_size=16, state_size=4, num_hidden_layers=2)
    return save(MambaForCausalLM(config), folder, make_tokenizer())


def test_a_state_space_model_is_refused_before_the_first_step(sparse_cache, tmp_path):
    folder, out = mamba(tmp_path / "mamba"), tmp_path / "out"
    settings = plain_sgd(per_device_train_batch_size=3, save_strategy="steps", save_steps=1)
    with pytest.raises(ModelError, match=REFUSED):
        train(arguments(sparse_cache, folder, out, padding_free=True, **settings))
    assert not out.exists()


@pytest.mark.parametrize("half", [{}, {"bf16": True}], ids=["float32", "bf16"])
def test_a_body_that_ignores_where_positions_begin_again_is_refused(
    sparse_cache, student_folder, tmp_path, monkeypatch, half
):
    own = LlamaModel.forward
    monkeypatch.setattr(LlamaModel, "forward", lambda self, *args, position_ids=None, **kw: own(self, *args, **kw))
    with pytest.raises(ModelError, match=REFUSED):
        train(arguments(sparse_cache, student_folder, tmp_path, padding_free=True, **plain_sgd(**half)))
    assert not list(tmp_path.iterdir())


def test_one_row_is_enough_to_refuse(sparse_cache, student_folder, monkeypatch):
    own, rows = LlamaModel.forward, CachedResponses([sparse_cache.folder]).some(1)
    model, modes = load(student_folder).train(), []
    model.model.register_forward_pre_hook(lambda body, inputs: modes.append(body.training))
    require_padding_free(model, rows, rounding_apart("float32"))
    assert model.training and modes == [False, False], "tried without dropout"
    monkeypatch.setattr(LlamaModel, "forward", lambda self, *args, position_ids=None, **kw: own(self, *args, **kw))
    with pytest.raises(ModelError, match=REFUSED):
        require_padding_free(model, rows, rounding_apart("float32"))


def test_a_body_that_takes_no_positions_is_refused_in_one_line(sparse_cache, student_folder, monkeypatch):
    own, rows = LlamaModel.forward, CachedResponses([sparse_cache.folder]).some(4)

    def forward(self, input_ids=None, attention_mask=None, use_cache=None):
        return own(self, input_ids, attention_mask, use_cache=use_cache)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    with pytest.raises(ModelError, match=REFUSED) as found:
        require_padding_free(load(student_folder), rows, rounding_apart("float32"))
    assert "position_ids" in str(found.value)


def test_states_that_are_not_finite_are_not_called_a_difference(sparse_cache, student_folder):
    model = load(student_folder)
    model.model.norm.weight.data[0] = torch.inf
    with pytest.raises(NonFiniteLogits, match="expected finite hidden states"):
        require_padding_free(model, CachedResponses([sparse_cache.folder]).some(4), rounding_apart("float32"))


def test_one_position_that_is_off_is_enough_to_refuse(sparse_cache, student_folder, monkeypatch):
    own, rows = LlamaModel.forward, CachedResponses([sparse_cache.folder]).some(4)
    at = int(in_one(rows)["position"][0])

    def forward(self, *args, position_ids=None, **kwargs):
        hidden = own(self, *args, position_ids=position_ids, **kwargs)[0].clone()
        if position_ids is not None:
            hidden[0, at] *= 1.2
        return (hidden,)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    with pytest.raises(ModelError, match=r"got some 20.0% off"):
        require_padding_free(load(student_folder), rows, 0.1)


def test_states_that_are_finite_in_padded_rows_alone_are_refused(sparse_cache, student_folder, monkeypatch):
    own = LlamaModel.forward

    def forward(self, *args, position_ids=None, **kwargs):
        hidden = own(self, *args, position_ids=position_ids, **kwargs)[0]
        return (hidden if position_ids is None else hidden * torch.nan,)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    with pytest.raises(ModelError, match=REFUSED):
        require_padding_free(load(student_folder), CachedResponses([sparse_cache.folder]).some(4), 1.0)


def test_the_tolerance_is_that_of_the_coarsest_dtype_of_the_run():
    plain = {"fp16": False, "bf16": False, "tf32": None}
    found = [
        rounding_of(SimpleNamespace(**plain | more), weights)
        for more, weights in (
            ({}, torch.float32),
            ({"tf32": True}, torch.float32),
            ({"fp16": True}, torch.float32),
            ({"bf16": True}, torch.float32),
            ({"fp16": True}, torch.bfloat16),
        )
    ]
    assert found == [1e-3, 6.4 / 1024, 6.4 / 1024, 0.05, 0.05]


def test_flash_attention_is_told_the_rows_limits(sparse_cache, student_folder, monkeypatch):
    rows = CachedResponses([sparse_cache.folder]).some(3)
    lengths = [len(row.input_ids) for row in rows]
    seen = {}
    own = LlamaModel.forward

    def forward(self, *args, **kwargs):
        seen.update(kwargs)
        monkeypatch.setattr(self.config, "_attn_implementation", "sdpa")
        return own(self, *args, **kwargs)

    model = load(student_folder)
    monkeypatch.setattr(LlamaModel, "forward", forward)
    monkeypatch.setattr(model.config, "_attn_implementation", "flash_attention_2")
    response_states(model, attention_mask=None, **in_one(rows))
    assert seen["cu_seq_lens_q"].tolist() == [0, lengths[0], sum(lengths[:2]), sum(lengths)]
    assert seen["cu_seq_lens_q"].dtype == torch.int32 and seen["cu_seq_lens_k"] is seen["cu_seq_lens_q"]
    assert seen["max_length_q"] == seen["max_length_k"] == max(lengths)


def test_rows_in_one_have_the_tokens_of_padded_rows_and_positions_that_begin_again(sparse_cache):
    rows = CachedResponses([sparse_cache.folder]).some(4)
    free, apart = in_one(rows), padded(rows, 0)
    assert free["input_ids"].flatten().tolist() == apart["input_ids"][apart["attention_mask"].bool()].tolist()
    assert free["packed"]["position_ids"].tolist() == [[t for row in rows for t in range(len(row.input_ids))]]
    read = [inputs["input_ids"].flatten()[inputs["position"]].tolist() for inputs in (free, apart)]
    assert read[0] == read[1]


def test_the_identity_has_padding_free_only_where_it_is_on(sparse_cache, student_folder, tmp_path):
    for name, free in (("free", True), ("padded", False)):
        train(arguments(sparse_cache, student_folder, tmp_path / name, padding_free=free, **recipe(max_steps=2)))
        recorded = json.loads((tmp_path / name / "checkpoint-1" / "distill_run.json").read_text())
        assert recorded.get("padding_free") is (True if free else None)
        other = arguments(
            sparse_cache,
            student_folder,
            tmp_path / "other",
            padding_free=not free,
            resume_from_checkpoint=str(tmp_path / name / "checkpoint-1"),
            **recipe(max_steps=2),
        )
        with pytest.raises(CacheConflict, match="padding_free"):
            train(other)


def test_a_resumed_run_without_padding_equals_an_unbroken_run(sparse_cache, student_folder, tmp_path, capsys):
    settings = recipe(num_train_epochs=1, padding_free=True)
    train(arguments(sparse_cache, student_folder, tmp_path / "a", **settings))
    assert "   padding  none: the rows of a micro-batch run as one\n" in capsys.readouterr().out
    checkpoint = str(tmp_path / "a" / "checkpoint-3")
    trainer = train(
        arguments(sparse_cache, student_folder, tmp_path / "b", resume_from_checkpoint=checkpoint, **settings)
    )
    assert isinstance(trainer, DistillTrainer) and same_weights(tmp_path / "a", tmp_path / "b")
