"""--dtype and --tf32: one dtype for all roles; float16 end to end; what leaves float16's range is named."""

import functools
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import build_options
from test_bad_input import refusal
from test_build import soft_cap
from test_evaluate import flags, on_cache
from test_rollout import options as rollout_options
from test_training import arguments, plain_sgd
from tiny import load, make_llama, make_trio, save

from precompute.build.build import build
from precompute.check.__main__ import check
from precompute.check.agreement import SAME_FLOAT16
from precompute.check.options import CheckOptions
from precompute.models import output_layer
from precompute.models.folders import load_merged, load_models
from precompute.models.output_layer import OutputLayer, why_copied, why_no_product
from precompute.rollout.__main__ import rollout
from shards import ShardCache
from shards.cli.device import resolve_dtype, resolve_trained_dtype, set_products
from shards.errors import OptionError
from shards.modelfiles.find import resolve
from shards.verify.__main__ import main as verify
from student.evaluate.__main__ import main as evaluate
from student.train.__main__ import train

CPU, GPU = torch.device("cpu"), SimpleNamespace(type="cuda")
V = 18
RANGE = " in float16, whose range ends at 65,504; give --dtype bfloat16 or float32"
SMALL = {"limit": 6, "top_k": 5, "max_top_k": 12, "responses": "both"}


# ---- the flags


def test_auto_is_float32_on_a_cpu_and_float16_on_a_gpu():
    assert [resolve_dtype("auto", device) for device in (CPU, GPU)] == ["float32", "float16"]
    for name in ("float32", "float16", "bfloat16"):
        assert {resolve_dtype(name, device) for device in (CPU, GPU)} == {name}
    assert resolve_trained_dtype("auto", GPU, frozen=False) == "float32"
    assert resolve_trained_dtype("auto", GPU, frozen=True) == "float16"


def a_torch(capability=(9, 0), *, old=False):
    """What `set_products` uses of torch; old: before 2.9."""
    names = {} if old else {"fp32_precision": "none"}
    matmul, conv = SimpleNamespace(**names), SimpleNamespace(**names)
    cuda = SimpleNamespace(get_device_capability=lambda device: capability)
    backends = SimpleNamespace(cuda=SimpleNamespace(matmul=matmul), cudnn=SimpleNamespace(conv=conv))
    return SimpleNamespace(cuda=cuda, backends=backends)


@pytest.mark.parametrize("tf32", [True, False])
def test_products_of_a_gpu_are_set_in_old_and_in_new_versions_of_torch(tf32):
    new, old = a_torch(), a_torch(old=True)
    for torch_ in (new, old):
        set_products(torch_, dtype="float32", tf32=tf32, device=GPU)
        assert torch_.backends.cuda.matmul.allow_fp16_reduced_precision_reduction is False
        assert torch_.backends.cuda.matmul.allow_bf16_reduced_precision_reduction is False
    kinds = {new.backends.cuda.matmul.fp32_precision, new.backends.cudnn.conv.fp32_precision}
    assert kinds == {"tf32" if tf32 else "ieee"}
    assert old.backends.cuda.matmul.allow_tf32 is old.backends.cudnn.allow_tf32 is tf32


def test_tf32_is_refused_where_it_means_nothing():
    for dtype, device in (("float32", CPU), ("float16", GPU), ("bfloat16", GPU)):
        with pytest.raises(OptionError, match=f"^tf32: expected it with --dtype float32 on a GPU, got {dtype} on"):
            set_products(a_torch(), dtype=dtype, tf32=True, device=device)
    with pytest.raises(OptionError, match=r"^tf32: expected a GPU of compute capability 8.0 or more, got 7.5$"):
        set_products(a_torch((7, 5)), dtype="float32", tf32=True, device=GPU)


def test_the_names_that_are_set_are_names_of_this_torch():
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    assert isinstance(matmul.allow_fp16_reduced_precision_reduction, bool)
    assert isinstance(matmul.allow_bf16_reduced_precision_reduction, bool)
    assert hasattr(matmul, "fp32_precision") == hasattr(conv, "fp32_precision")


def test_the_trainers_tf32_reaches_the_products_of_the_output_layer():
    from transformers.utils.import_utils import enable_tf32

    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("before torch 2.9 transformers sets the flag of the products itself")
    before = torch.backends.fp32_precision
    try:
        enable_tf32(True)
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.fp32_precision = before


def test_the_trainers_tf32_is_refused_on_a_cpu_in_one_line(sparse_cache, tmp_path):
    message = refusal(lambda: arguments(sparse_cache, "", tmp_path, tf32=True))
    assert message.startswith("TrainingArguments: ") and "--tf32 requires Ampere" in message


# ---- output layers


def linear(bias=False):
    torch.manual_seed(0)
    return torch.nn.Linear(16, V, bias=bias).requires_grad_(False).half()


def test_a_cpu_multiplies_with_a_float32_copy_of_half_precision_weights_and_says_so():
    layer = OutputLayer.of(linear(), torch.float16, CPU, own=False)
    assert layer.module.weight.dtype == torch.float32 and not layer.halves
    assert layer.why == "a float32 copy of float16 weights: a CPU has no product of halves that is summed in float32"
    plain = linear().float()
    same = OutputLayer.of(plain, torch.float32, CPU, own=False)
    assert same.module is plain and same.why == "float32 weights"
    assert OutputLayer.of(plain, torch.float32, CPU, own=True).module is not plain


@pytest.fixture
def gpu_products(monkeypatch):
    """torch.mm as a GPU has it, for tensors on a CPU: exact products of halves, float32 sums."""
    product = torch.mm

    def mm(one, other, *, out_dtype):
        assert one.dtype == other.dtype != torch.float32 == out_dtype
        return product(one.float(), other.float())

    monkeypatch.setattr(output_layer, "why_no_product", lambda device, dtype: None)
    monkeypatch.setattr(torch, "mm", mm)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_half_precision_weights_are_not_widened_where_the_device_has_the_product(gpu_products, bias, own):
    module = linear(bias)
    layer = OutputLayer.of(module, torch.float16, CPU, own=own)
    assert layer.halves and layer.why == "float16 weights as they are, summed in float32"
    assert (layer.module is module) == (not own) and layer.module.weight.dtype == torch.float16
    hidden_NH = torch.randn(7, 16).half()
    found = layer(hidden_NH)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, linear(bias).float()(hidden_NH.float()), rtol=1e-6, atol=1e-6)


def test_an_output_layer_that_is_more_than_its_weight_is_copied(gpu_products):
    class Scaled(torch.nn.Linear):
        pass

    hooked = linear()
    hooked.register_forward_hook(lambda *_: None)
    assert why_copied(Scaled(16, V).half(), torch.float16, CPU) == "it is a Scaled, not a plain Linear"
    assert why_copied(hooked, torch.float16, CPU) == "it has hooks or a forward of its own"
    assert why_copied(linear(), torch.float32, CPU) == "hidden states are float32"
    assert why_copied(linear(), torch.float16, CPU) is None


def test_whether_a_device_has_the_product_is_tried(monkeypatch):
    meta = torch.device("meta")
    assert why_no_product(meta, torch.float16) is None

    def old(one, other):
        return one @ other

    monkeypatch.setattr(torch, "mm", old)  # before torch 2.8
    expected = f"torch {torch.__version__} has no product of halves that is summed in float32 on meta"
    assert why_no_product(meta, torch.float16) == expected


def test_one_model_in_memory_has_the_dtype_of_the_device_and_not_of_the_host(trio_folders):
    folders = {role: resolve(str(folder)) for role, folder in trio_folders.items()}
    for model in load_models(folders, V, dtype="auto", device="meta", one_at_a_time=True).values():
        assert model.dtype == model.output_layer.module.weight.dtype == torch.float16  # meta is not a CPU
        assert model.model.device == CPU and model.device.type == "meta" and model.output_layer.halves


def test_an_adapter_is_merged_in_float32_and_rounded_once(trio_folders, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    peft.get_peft_model(load(trio_folders["reference"]), config).save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(trio_folders["dpo"])}))
    folder = resolve(str(tmp_path / "adapter"))
    wide, half = (load_merged(folder, "model", dtype=dtype, device="cpu") for dtype in ("float32", "float16"))
    for (name, whole), (_, rounded) in zip(wide.named_parameters(), half.named_parameters(), strict=True):
        assert rounded.dtype == torch.float16 and torch.equal(whole.half(), rounded), name
    frequencies = half.model.rotary_emb.inv_freq
    assert frequencies.dtype == torch.float32 and torch.equal(frequencies, wide.model.rotary_emb.inv_freq)


# ---- the whole way


@pytest.fixture(scope="module")
def half_trio(trio_folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("halves")
    return {role: save(load(folder, torch.float16), out / role) for role, folder in trio_folders.items()}


@pytest.fixture(scope="module")
def half_cache(half_trio, pairs_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("half") / "cache"
    build(build_options(half_trio, pairs_file, out, dtype="float16", **SMALL))
    return ShardCache(out)


def test_float16_goes_the_whole_way(half_cache, tmp_path, capsys):
    assert half_cache.plan.identity["numerics"]["dtype"] == "float16"
    assert "tf32" not in half_cache.plan.identity["numerics"]
    assert verify([str(half_cache.folder)]) in (None, 0)
    report = check(CheckOptions(shards=str(half_cache.folder), device="cpu"))
    assert report.agrees and report.tolerance is SAME_FLOAT16 and report.numerics == []
    reference = half_cache.provenance["models"]["reference"]
    train(arguments(half_cache, reference, tmp_path / "out", **plain_sgd(learning_rate=0.1, global_batch_size=24)))
    assert load(tmp_path / "out").dtype == torch.float32
    measured = on_cache(half_cache, tmp_path / "out", dtype="float16")
    assert measured["dtype"] == "float16"
    wide = on_cache(half_cache, tmp_path / "out")["quantities"]["kl_reference"]["model"]["mean"]
    assert measured["quantities"]["kl_reference"]["model"]["mean"] == pytest.approx(wide, rel=0.1, abs=1e-5)


def test_the_build_says_its_dtype(half_trio, pairs_file, tmp_path, capsys):
    build(build_options(half_trio, pairs_file, tmp_path / "cache", **SMALL))
    assert "dtype  float32 bodies; output layers: float32 weights\n" in capsys.readouterr().out
    build(build_options(half_trio, pairs_file, tmp_path / "half", dtype="float16", **SMALL))
    assert "dtype  float16 bodies; output layers: a float32 copy of float16 weights: a CPU" in capsys.readouterr().out


def test_all_roles_have_one_dtype_however_their_folders_were_saved(trio_folders, pairs_file, tmp_path):
    saved = {"reference": torch.bfloat16, "dpo": torch.float32, "reverse": torch.float16}
    mixed = {role: save(load(trio_folders[role], dtype), tmp_path / role) for role, dtype in saved.items()}
    folders = {role: resolve(str(folder)) for role, folder in mixed.items()}
    for dtype, expected in (("auto", torch.float32), ("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        assert {model.dtype for model in load_models(folders, V, dtype=dtype, device="cpu").values()} == {expected}
    build(build_options(mixed, pairs_file, tmp_path / "cache", **SMALL))
    assert ShardCache(tmp_path / "cache").plan.identity["numerics"]["dtype"] == "float32", "never auto"
    assert check(CheckOptions(shards=str(tmp_path / "cache"), device="cpu")).agrees


def test_float16_is_eight_times_nearer_to_float32_than_bfloat16(trio_folders, pairs_file, tmp_path):
    found = {}
    for dtype in ("float32", "float16", "bfloat16"):
        given = {"dtype": dtype, "limit": 6, "support": "fixed", "top_k": V}
        build(build_options(trio_folders, pairs_file, tmp_path / dtype, **given))
        scores = [response.scores for response in ShardCache(tmp_path / dtype).read(range(6))]
        found[dtype] = np.concatenate([(s.logprobs["dpo"] - s.logprobs["reverse"]).ravel() for s in scores])
    errors = {dtype: np.abs(found[dtype] - found["float32"]).mean() for dtype in ("float16", "bfloat16")}
    assert 4 < errors["bfloat16"] / errors["float16"] < 16


# ---- bodies that leave float16's range


def overflowing(make=make_llama):
    """A model whose residual stream passes 65,504, where float16 ends, and which float32 and bfloat16 hold."""
    model = make(0)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(4e4)
    return model


@pytest.fixture(scope="module")
def wild(tmp_path_factory):
    return save(overflowing(), tmp_path_factory.mktemp("wild"))


def test_a_body_that_leaves_float16_is_named_with_sample_and_position(trio_folders, wild, pairs_file, tmp_path):
    for role in ("dpo", "reverse", "reference"):
        trio = trio_folders | {role: wild}
        given = build_options(trio, pairs_file, tmp_path / role, dtype="float16", **SMALL)
        message = refusal(lambda given=given: build(given))
        where = r"sample \d+/(chosen|rejected) at token \d+"
        assert re.fullmatch(rf"{role}: expected finite hidden states, got nan for {where}{RANGE}", message)
    for dtype in ("bfloat16", "float32"):
        build(build_options(trio, pairs_file, tmp_path / dtype, dtype=dtype, **SMALL))


@pytest.mark.parametrize("given", [{"share_prompts": True}, {"models_in_memory": "one"}, {"support": "fixed"}], ids=str)
def test_it_is_found_in_every_kind_of_build(trio_folders, wild, pairs_file, tmp_path, given):
    options = build_options(
        trio_folders | {"dpo": wild}, pairs_file, tmp_path / "cache", dtype="float16", **SMALL | given
    )
    message = refusal(lambda: build(options))
    assert message.startswith("dpo: expected finite hidden states, got nan for sample ") and message.endswith(RANGE)


def test_a_state_that_a_soft_cap_would_hide_is_found(pairs_file, tmp_path, monkeypatch):
    from precompute.models.role_model import RoleModel

    folders = make_trio(tmp_path / "trio", soft_cap)
    states = RoleModel.hidden

    def infinite(self, *args):
        found = states(self, *args)
        found[:, 2:] = torch.inf if self.role == "dpo" else found[:, 2:]
        return found

    monkeypatch.setattr(RoleModel, "hidden", infinite)
    monkeypatch.setattr("precompute.models.role_model.require_same_logits", lambda *_, **__: None)
    message = refusal(lambda: build(build_options(folders, pairs_file, tmp_path / "cache", **SMALL)))
    assert message.startswith("dpo: expected finite hidden states, got inf for sample ")
    assert "--dtype" not in message, "float32 is the widest"


def test_a_check_of_such_a_body_names_it_too(trio_folders, wild, pairs_file, tmp_path):
    trio = trio_folders | {"reverse": wild}
    build(build_options(trio, pairs_file, tmp_path / "cache", **SMALL))
    found = CheckOptions(shards=str(tmp_path / "cache"), dtype="float16", device="cpu")
    message = refusal(lambda: check(found))
    assert message.startswith("reverse: expected finite hidden states, got nan for sample ") and message.endswith(RANGE)


def test_samples_of_such_a_body_are_refused_and_not_written(wild, pairs_file, tmp_path):
    for temperature in (0.0, 1.0):
        given = rollout_options(wild, pairs_file, tmp_path / "s.jsonl", dtype="float16", temperature=temperature)
        message = refusal(functools.partial(rollout, given))
        where = r"sample 0 of prompt \d+ at token \d+"
        assert re.fullmatch(rf"model: expected finite logits for {where}, got others{RANGE}", message)
        assert not (tmp_path / "s.jsonl").exists()
    rollout(rollout_options(wild, pairs_file, tmp_path / "s.jsonl", dtype="bfloat16"))


def test_an_evaluation_of_such_a_body_says_what_to_give(sparse_cache, wild):
    given = {"model": wild, "shards": sparse_cache.folder, "dtype": "float16"}
    message = refusal(lambda: evaluate(flags(**given)))
    assert message == f"student: expected finite logits of LlamaForCausalLM, got nan{RANGE}"
    evaluate(flags(**given | {"dtype": "bfloat16"}))


def test_a_frozen_base_that_leaves_float16_is_refused_before_the_first_step(sparse_cache, wild, tmp_path):
    given = plain_sgd(use_peft=True, lora_r=2, dtype="float16", learning_rate=1e-4)
    message = refusal(lambda: train(arguments(sparse_cache, wild, tmp_path / "out", **given)))
    assert message == f"student: expected finite logits of LlamaForCausalLM, got nan{RANGE}"
