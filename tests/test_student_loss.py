"""The loss: equal to the dense formulas if all tokens are kept, below them otherwise."""

import copy
from types import SimpleNamespace

import dense
import numpy as np
import pytest
import torch
from tiny import make_llama, make_tokenizer, nudged
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from precompute.scoring.support import SupportRule, summarise
from shards import Divergence, TeacherSpec
from shards.format.nodes import StrengthNodes
from shards.teacher.compose import compose
from shards.teacher.divergence import segment_sum
from student.data.collate import Collator
from student.data.order import BatchItem
from student.data.responses import CachedResponses
from student.loss.forward import DistillForward
from student.loss.sparse import SparseTargets, sparse_divergence
from student.trainer import DistillTrainer

DIVERGENCES = ("reverse_kl", "forward_kl", "jsd")
V = 18


def batch_of(cache, rows, preset="aligndistil", reduction="sequence", fillers=0):
    data = CachedResponses([cache.folder], train_on="both")
    spec = TeacherSpec.preset(preset)
    data = data.for_teacher(spec)
    items = [BatchItem(row, True) for row in rows] + [BatchItem(rows[0], False)] * fillers
    collator = Collator(spec=spec, nodes=data.nodes, reduction=reduction, pad_token_id=0)
    return collator(data.__getitems__(items))


def distil(model, batch, *, name="reverse_kl", chunk=256, jsd_weight=0.5, **more):
    """The package's loss of one batch, through the replaced forward; the model is unchanged afterwards."""
    base = model if hasattr(model, "get_decoder") and not hasattr(model, "get_base_model") else model.get_base_model()
    divergence = Divergence(name=name, jsd_weight=jsd_weight)
    forward = DistillForward(base, vocabulary_size=V, divergence=divergence, chunk_positions=chunk, **more)
    forward.install()
    try:
        out = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            position=batch["position"],
            targets=SparseTargets(batch),
        )
    finally:
        forward.restore()
    return out["loss_sum"] / batch["num_items"]


@pytest.fixture(scope="module")
def student(trio):
    return nudged(trio["reference"], 7, 0.3)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("preset", dense.PRESETS)
def test_with_all_tokens_kept_loss_and_gradient_are_the_dense_ones(whole_cache, trio, student, preset, name):
    rows = list(range(8))
    expected, smallest_kl = dense.loss(student, trio, whole_cache.read(rows), V, preset=preset, name=name)
    assert smallest_kl >= 0.1, "far enough away for a relative comparison"
    found = distil(student, batch_of(whole_cache, rows, preset), name=name)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    ours, theirs = dense.gradient(found, student), dense.gradient(expected, student)
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("preset", dense.PRESETS)
def test_in_float64_before_storing_the_pipeline_is_the_dense_formula(trio, student, whole_cache, preset, name):
    models = {role: copy.deepcopy(model).double() for role, model in trio.items()}
    pupil = copy.deepcopy(student).double()
    spec = TeacherSpec.preset(preset)
    nodes = StrengthNodes()
    for response in whole_cache.read([0, 3, 4]):
        with torch.no_grad():
            live = {role: dense.response_logprobs(model, response, V) for role, model in models.items()}
        count = len(live["dpo"])
        scores = summarise(
            live, torch.zeros(count, dtype=torch.long), rule=SupportRule(lowest=V, highest=V, log_threshold=None),
            pairs=[spec.pair], nodes=nodes,
        )  # fmt: skip
        made = compose(scores, spec, nodes)
        logits = dense.response_logprobs(pupil, response, V)
        targets = SparseTargets(float64_targets(made))
        value, _, _ = sparse_divergence(logits, targets, Divergence(name=name))
        target, weight = dense.teacher(live, *dense.PRESETS[preset])
        expected = dense.divergence(name, logits, target)
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(torch.from_numpy(made.weight), weight, rtol=1e-9, atol=0)
        ours, theirs = (dense.gradient((weight * v).sum(), pupil) for v in (value, expected))
        assert (ours - theirs).norm() <= 1e-9 * theirs.norm()


def float64_targets(made):
    """SparseTargets' tensors from a composed teacher, unrounded; what only the log needs is zero."""
    per_entry = torch.zeros(len(made.support_ids), dtype=torch.float64)
    per_position = torch.zeros(len(made.support_count), dtype=torch.float64)
    return {
        "support_count": torch.from_numpy(made.support_count.astype(np.int64)),
        "support_ids": torch.from_numpy(made.support_ids.astype(np.int64)),
        "teacher_logprobs": torch.from_numpy(made.logprobs),
        "teacher_tail": torch.from_numpy(made.tail_logprob),
        "coefficient": torch.from_numpy(made.weight),
        **dict.fromkeys(("reference_logprobs", "dpo_logprobs", "reward"), per_entry),
        **dict.fromkeys(("reference_tail", "dpo_tail", "dpo_reward", "strength", "tail_bound", "counts"), per_position),
    }


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_analytic_gradient_is_that_of_autograd_over_the_buckets(sparse_cache, name):
    batch = batch_of(sparse_cache, [0, 1, 2])
    targets = SparseTargets(
        {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
    )
    logits = torch.randn(len(targets.support_count), V, dtype=torch.float64, requires_grad=True)
    value, _, _ = sparse_divergence(logits, targets, Divergence(name=name, jsd_weight=0.3))
    (ours,) = torch.autograd.grad(value.sum(), logits)

    position = torch.arange(len(targets.support_count)).repeat_interleave(targets.support_count)
    logprobs = logits.log_softmax(-1)
    kept = logprobs[position, targets.support_ids]
    outside = torch.ones_like(logits, dtype=torch.bool).index_put((position, targets.support_ids), torch.tensor(False))
    tail = logprobs.masked_fill(~outside, -torch.inf).logsumexp(-1)
    expected = torch.zeros(len(logits), dtype=torch.float64)
    expected = expected.index_add(0, position, bucket_terms(name, kept, targets.teacher_logprobs))
    some = outside.any(-1)
    expected = expected + torch.where(
        some, bucket_terms(name, tail.where(some, 0.0), targets.teacher_tail.where(some, 0.0)), 0.0
    )
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    (theirs,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_size_of_a_positions_gradient_is_the_sum_over_the_vocabulary(sparse_cache, name):
    targets = SparseTargets(batch_of(sparse_cache, [0, 1, 2]))
    divergence = Divergence(name=name, jsd_weight=0.3)
    grad = torch.randn(len(targets.support_count), V, generator=torch.Generator().manual_seed(0))
    _, student, tail = divergence.with_gradient_(grad, targets.buckets, torch)
    size = divergence.gradient_size(student, tail, targets.buckets, torch)
    torch.testing.assert_close(size, grad.abs().sum(-1))


def bucket_terms(name, student, target, c=0.3):
    p, q = student.exp(), target.exp()
    if name == "reverse_kl":
        return p * (student - target)
    if name == "forward_kl":
        return q * (target - student)
    mixture = (c * q + (1 - c) * p).log()
    return c * q * (target - mixture) + (1 - c) * p * (student - mixture)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("preset", dense.PRESETS)
def test_a_cut_support_never_overstates_the_divergence(sparse_cache, trio, student, preset, name):
    for row in range(6):
        expected, _ = dense.loss(student, trio, sparse_cache.read([row]), V, preset=preset, name=name)
        found = distil(student, batch_of(sparse_cache, [row], preset), name=name)
        assert 0.2 * expected.item() < found.item() <= expected.item() * (1 + 1e-4)


@pytest.mark.parametrize("reduction", ["sequence", "token"])
def test_padding_batch_composition_and_chunks_do_not_change_loss_or_gradient(sparse_cache, student, reduction):
    rows = list(range(7))
    together = distil(student, batch_of(sparse_cache, rows, reduction=reduction))
    reference = dense.gradient(together, student)
    parts = [batch_of(sparse_cache, part, reduction=reduction, fillers=2) for part in ([3, 0], [6], [1, 5, 2, 4])]
    total = sum(int(part["num_items"]) for part in parts)
    apart = sum(distil(student, part, chunk=3) * part["num_items"] for part in parts) / total
    assert apart.item() == pytest.approx(together.item(), rel=1e-6)
    found = dense.gradient(apart, student)
    assert (found - reference).norm() <= 1e-5 * reference.norm()


def test_rows_that_do_not_count_weigh_nothing(sparse_cache, student):
    plain, filled = (batch_of(sparse_cache, [2, 3], fillers=n) for n in (0, 3))
    assert int(filled["num_items"]) == 2
    torch.testing.assert_close(distil(student, plain), distil(student, filled), rtol=1e-6, atol=0)


def tied(trio):
    return make_llama(11, tie_word_embeddings=True)


def frozen_head(trio):
    model = make_llama(12)
    model.get_output_embeddings().requires_grad_(False)
    return model


def soft_cap(trio):
    torch.manual_seed(3)
    config = Gemma2Config(
        vocab_size=V, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, final_logit_softcapping=2.0, initializer_range=0.4, pad_token_id=0,
        attn_implementation="eager",
    )  # fmt: skip
    return Gemma2ForCausalLM(config).eval()


def logit_scale(trio):
    torch.manual_seed(4)
    config = CohereConfig(
        vocab_size=V, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, logit_scale=0.25, initializer_range=0.4, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return CohereForCausalLM(config).eval()


def learned_positions(trio):
    torch.manual_seed(5)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.4)
    ).eval()


def wider_than_the_vocabulary(trio):
    return make_llama(13, width=V + 6)


def lora_on_the_head(trio):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["lm_head", "q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    return peft.get_peft_model(make_llama(14), config).eval()


@pytest.mark.parametrize(
    "make", [tied, frozen_head, soft_cap, logit_scale, learned_positions, wider_than_the_vocabulary, lora_on_the_head]
)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_every_kind_of_output_layer_gives_the_dense_loss_and_gradient(whole_cache, trio, make, name):
    model = make(trio)
    rows = [0, 1, 5]
    expected, _ = dense.loss(model, trio, whole_cache.read(rows), V, preset="aligndistil", name=name)
    found = distil(model, batch_of(whole_cache, rows), name=name, chunk=4)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    ours, theirs = dense.gradient(found, model), dense.gradient(expected, model)
    assert (ours - theirs).norm() <= 2e-5 * theirs.norm()


def test_a_bf16_model_has_its_logits_in_float32(whole_cache, trio):
    model = nudged(trio["reference"], 7, 0.1).bfloat16()
    batch = batch_of(whole_cache, [0, 1])
    found = distil(model, batch)
    hidden = model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0].flatten(0, 1)
    logits = hidden[batch["position"]].float() @ model.lm_head.weight.float().T
    value, _, _ = sparse_divergence(logits, SparseTargets(batch), Divergence())
    expected = (value * batch["coefficient"]).sum() / batch["num_items"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    rounded, _, _ = sparse_divergence(logits.bfloat16().float(), SparseTargets(batch), Divergence())
    loss = (rounded * batch["coefficient"]).sum() / batch["num_items"]
    assert loss.item() != pytest.approx(expected.item(), rel=1e-4)


def test_the_forward_is_the_models_own_without_targets_and_after_restoring(whole_cache, trio):
    model = nudged(trio["reference"], 7, 0.1)
    ids = torch.tensor([[1, 4, 5, 6]])
    before = model(input_ids=ids).logits
    forward = DistillForward(model, vocabulary_size=V, divergence=Divergence(), chunk_positions=8)
    forward.install()
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=0, atol=0)
    forward.restore()
    assert "forward" not in vars(model)


def test_a_student_at_the_teacher_has_no_loss_and_no_gradient(sparse_cache):
    batch = batch_of(sparse_cache, [0, 1])
    targets = SparseTargets(batch)
    position = torch.arange(len(targets.support_count)).repeat_interleave(targets.support_count)
    rest = V - targets.support_count
    logits = (targets.teacher_tail - rest.float().log()).double()[:, None].repeat(1, V)
    logits[position, targets.support_ids] = targets.teacher_logprobs.double()
    logits.requires_grad_()
    for name in DIVERGENCES:
        value, _, _ = sparse_divergence(logits, targets, Divergence(name=name))
        assert value.abs().max() < 1e-6
        (grad,) = torch.autograd.grad(value.sum(), logits)
        assert grad.abs().max() < 1e-6


def test_segment_sums_are_sums_of_each_position():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    assert segment_sum(values, torch.tensor([1, 3, 1]), torch).tolist() == [1.0, 9.0, 5.0]


def test_the_tiny_vocabulary_is_the_one_that_the_tests_assume():
    assert len(make_tokenizer().get_vocab()) == V


def test_chunks_are_cut_without_waiting_for_the_device(sparse_cache, monkeypatch):
    batch = batch_of(sparse_cache, [0, 1, 2])
    without = {name: tensor for name, tensor in batch.items() if name != "support_ends"}
    expected = list(SparseTargets(without).chunks(4))

    def waited(*args):
        raise AssertionError("asks the device")

    monkeypatch.setattr(torch.Tensor, "cumsum", waited)
    for (mine, targets), (theirs, other) in zip(SparseTargets(batch).chunks(4), expected, strict=True):
        assert mine == theirs and torch.equal(targets.support_ids, other.support_ids)


def test_a_micro_batch_goes_to_the_device_without_waiting_and_ends_stay_on_the_host(sparse_cache, monkeypatch):
    trainer = DistillTrainer.__new__(DistillTrainer)
    trainer.args = SimpleNamespace(device=torch.device("meta"))
    waits, plain = [], torch.Tensor.to

    def to(self, *args, non_blocking=False, **kwargs):
        waits.append(not non_blocking)
        return plain(self, *args, non_blocking=non_blocking, **kwargs)

    batch = batch_of(sparse_cache, [0, 1])
    monkeypatch.setattr(torch.Tensor, "to", to)
    found = trainer._prepare_inputs(batch)
    assert {name for name, tensor in found.items() if tensor.device.type == "cpu"} == {"support_ends", "rows"}
    assert found.keys() == batch.keys() and waits and not any(waits)
