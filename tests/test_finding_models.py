"""precompute and student find models in the same way: a folder, a hub commit, an adapter with its base."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from conftest import build_options
from huggingface_hub import errors as hub_errors
from tiny import load, make_llama, nudged, save
from transformers import AutoModelForCausalLM, Llama4ForCausalLM, Llama4TextConfig

from precompute.build.build import build
from precompute.check.__main__ import check
from precompute.check.options import CheckOptions
from precompute.models.folders import identity, load_merged, load_models, load_tokenizer
from shards import Divergence, ShardCache
from shards.errors import AlignDistilError
from shards.modelfiles.find import resolve
from shards.modelfiles.head import body_of
from student.load import load_model, load_whole
from student.load import load_tokenizer as load_student_tokenizer
from student.loss.forward import DistillForward
from student.options import DistillArguments
from student.train.__main__ import train
from student.train.reference import reference_of

V = 18
SMALL = {"limit": 3, "top_k": 5, "max_top_k": 12}
OLD, NEW = "a" * 40, "b" * 40


def refusal(action):
    with pytest.raises(AlignDistilError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- the hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's cache on this disk, empty; `put` fills it like a download."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(name, commit, folder):
        repo = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, repo / "snapshots" / commit)
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / "main").write_text(commit)
        return repo / "snapshots" / commit

    return put


@pytest.fixture
def hub_cache(hub, trio_folders, pairs_file, tmp_path):
    """A cache whose reference came from the hub, which has other weights at its newest commit now."""
    hub("lab/reference", OLD, trio_folders["reference"])
    models = trio_folders | {"reference": "lab/reference"}
    build(build_options(models, pairs_file, tmp_path / "cache", **SMALL))
    newer = save(nudged(load(trio_folders["reference"]), 9, 0.5), tmp_path / "newer")
    hub("lab/reference", NEW, newer)
    return tmp_path / "cache"


def test_a_reference_from_the_hub_is_taken_at_the_commit_of_the_build(hub_cache, tmp_path):
    assert resolve("lab/reference").commit == NEW
    found = reference_of(ShardCache(hub_cache))
    assert (found.name, found.commit) == ("lab/reference", OLD)
    run = DistillArguments(
        shards=[str(hub_cache)], output_dir=str(tmp_path / "out"), max_steps=1,
        per_device_train_batch_size=3, global_batch_size=3, learning_rate=0.0,
        lr_scheduler_type="constant", use_cpu=True, report_to=[], save_strategy="no",
    )  # fmt: skip
    train(run)
    old = load(found.path).state_dict()
    for name, weight in load(tmp_path / "out").state_dict().items():
        assert torch.equal(weight, old[name])
    assert "| started from | lab/reference |" in (tmp_path / "out" / "README.md").read_text()


def test_the_check_takes_the_commit_of_the_build_unless_a_model_is_given(hub_cache):
    assert check(CheckOptions(shards=str(hub_cache), device="cpu")).agrees
    report = check(CheckOptions(shards=str(hub_cache), models=["reference=lab/reference"], device="cpu"))
    assert not report.agrees and "reference" in report.changed


def test_a_commit_that_is_gone_is_not_replaced_by_another(hub_cache, tmp_path):
    shutil.rmtree(tmp_path / "hub" / "models--lab--reference" / "snapshots" / OLD)
    message = refusal(lambda: reference_of(ShardCache(hub_cache)))
    assert message.startswith("lab/reference: expected a model folder or a hub name, got no folder, and HF_HUB_OFFLINE")


def test_other_weights_at_the_recorded_commit_are_seen(hub_cache, tmp_path):
    snapshots = tmp_path / "hub" / "models--lab--reference" / "snapshots"
    shutil.copy(snapshots / NEW / "model.safetensors", snapshots / OLD / "model.safetensors")
    assert refusal(lambda: reference_of(ShardCache(hub_cache))) == (
        f"{hub_cache}: expected the reference lab/reference as it was scored, got other weights; give --model"
    )


def make_adapter(base, folder):
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(load(base), config)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder)
    return folder, adapted


def set_fields(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_an_adapter_from_the_hub_is_merged_into_its_base_in_both_rooms(hub, trio_folders, tmp_path):
    folder, adapted = make_adapter(trio_folders["reference"], tmp_path / "adapter")
    hub("lab/base", OLD, trio_folders["reference"])
    hub("lab/base", NEW, trio_folders["dpo"])
    set_fields(folder / "adapter_config.json", base_model_name_or_path="lab/base", revision=OLD)
    hub("lab/adapter", NEW, folder)
    ids = torch.tensor([[1, 5, 3, 7]])
    student = load_model("lab/adapter", dtype="float32")
    other = load_merged(resolve("lab/adapter"), "model", dtype="auto", device="cpu")
    with torch.no_grad():
        expected = adapted(input_ids=ids).logits
        for model in (student, other):
            torch.testing.assert_close(model(input_ids=ids).logits, expected, atol=1e-5, rtol=0)
    assert student.config._name_or_path == "lab/adapter"
    assert len(load_student_tokenizer("lab/adapter")) == len(load_tokenizer(resolve("lab/adapter"))) == V


def test_the_base_of_a_recorded_adapter_is_taken_at_its_commit(hub, trio_folders, tmp_path):
    folder, _ = make_adapter(trio_folders["reference"], tmp_path / "adapter")
    hub("lab/base", OLD, trio_folders["reference"])
    set_fields(folder / "adapter_config.json", base_model_name_or_path="lab/base")
    recorded = identity(resolve(str(folder)))
    hub("lab/base", NEW, trio_folders["dpo"])
    assert resolve(str(folder)).base.commit == NEW
    assert identity(resolve(str(folder), recorded=recorded)) == recorded


def test_a_changed_adapter_or_base_is_not_the_reference_that_was_scored(trio_folders, pairs_file, tmp_path):
    base = shutil.copytree(trio_folders["reference"], tmp_path / "base")
    folder, _ = make_adapter(base, tmp_path / "adapter")
    build(build_options(trio_folders | {"reference": folder}, pairs_file, tmp_path / "cache", **SMALL))
    cache = ShardCache(tmp_path / "cache")
    assert reference_of(cache).base.path == base
    set_fields(folder / "adapter_config.json", lora_alpha=3)
    assert "as it was scored, got other config; give --model" in refusal(lambda: reference_of(cache))
    set_fields(folder / "adapter_config.json", lora_alpha=8)
    shutil.copy(trio_folders["dpo"] / "model.safetensors", base / "model.safetensors")
    assert "as it was scored, got other base's weights; give --model" in refusal(lambda: reference_of(cache))


def not_reached(*args, **kwargs):
    try:
        raise OSError(-2, "Name or service not known")
    except OSError as exc:
        raise hub_errors.LocalEntryNotFoundError("Got: ConnectError: ...\nAn error happened") from exc


@pytest.mark.parametrize(
    ("offline", "name", "expected"),
    [
        (True, "modles/dpo", "HF_HUB_OFFLINE is set and the hub's cache on this disk does not hold it"),
        (False, "modles/dpo", "the hub could not be reached (Name or service not known)"),
        (True, "runs/models/dpo", "this cannot be a hub name"),
    ],
)
def test_a_misspelt_folder_reads_like_one_in_both_rooms(monkeypatch, offline, name, expected):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    if not offline:
        monkeypatch.setattr(huggingface_hub, "snapshot_download", not_reached)
    line = f"{name}: expected a model folder or a hub name, got no folder, and {expected}"
    find_all = (
        lambda: resolve(name),
        lambda: load_model(name, dtype="float32"),
        lambda: load_student_tokenizer(name),
        lambda: load_whole(name, AutoModelForCausalLM, "a model"),
    )
    for find in find_all:
        assert refusal(find) == line


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (hub_errors.RepositoryNotFoundError, "the hub has no such model, or shows it to other accounts only"),
        (hub_errors.GatedRepoError, "the hub asks for an account that may read it"),
        (hub_errors.RevisionNotFoundError, "the hub no longer has this commit of it"),
    ],
)
def test_what_the_hub_refuses_is_said(monkeypatch, error, expected):
    def refuse(*args, **kwargs):
        raise error.__new__(error)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    assert refusal(lambda: resolve("lab/model")).endswith(f"got no folder, and {expected}")


# ---- bodies


def make_llama4():
    torch.manual_seed(0)
    config = Llama4TextConfig(
        vocab_size=V, hidden_size=16, intermediate_size=32, intermediate_size_mlp=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, num_local_experts=2, max_position_embeddings=64,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.4,
    )  # fmt: skip
    return Llama4ForCausalLM(config).eval()


def test_the_body_of_a_model_that_calls_itself_its_base_is_found_in_both_rooms(tmp_path):
    folder = save(make_llama4(), tmp_path / "llama4")
    model = load(folder)
    assert isinstance(model, Llama4ForCausalLM) and model.base_model is model and model.get_decoder() is model
    ids = torch.tensor([[1, 5, 3, 7]])
    role = load_models({"dpo": resolve(str(folder))}, V, dtype="auto", device="cpu")["dpo"]
    with torch.no_grad():
        ours = role.logits(role.hidden(ids, torch.ones_like(ids))[0])
        torch.testing.assert_close(ours, model(input_ids=ids).logits[0])
    DistillForward(model, vocabulary_size=V, divergence=Divergence(name="reverse_kl"), chunk_positions=8)


def test_a_model_without_a_body_is_refused(monkeypatch):
    model = make_llama(0)
    monkeypatch.setattr(type(model), "base_model_prefix", "nothing")
    monkeypatch.setattr(type(model), "get_decoder", lambda self: self)
    assert body_of(model, "dpo") is model.model, "the one model in it"
    model.other = make_llama(1)
    message = refusal(lambda: body_of(model, "dpo"))
    assert message == "dpo: expected a model with a body and an output layer, got LlamaForCausalLM"


# ---- tokenizers and dtypes


def test_a_sentencepiece_tokenizer_without_the_package_names_it(trio_folders, tmp_path, monkeypatch):
    folder = shutil.copytree(trio_folders["dpo"], tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    monkeypatch.setattr("shards.modelfiles.folder.find_spec", lambda name: None)
    line = (
        f"{folder}: expected tokenizer.json, or the package sentencepiece, which reads tokenizer.model; "
        "pip install sentencepiece"
    )
    assert refusal(lambda: load_tokenizer(resolve(str(folder)))) == line
    assert refusal(lambda: load_student_tokenizer(str(folder))) == line
