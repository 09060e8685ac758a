"""Every bad input ends in one line with where, expected and got, and changes nothing that was written before."""

import json
import re
import shutil
from pathlib import Path

import fresh
import pytest
import torch
from conftest import build_options
from safetensors.torch import load_file, save_file
from tiny import WORDS, load, make_llama, make_pairs, make_tokenizer, save, write_jsonl
from transformers import LlamaForCausalLM, TrainingArguments

from precompute.build.__main__ import main as build_main
from precompute.build.build import build
from shards import ShardCache
from shards.errors import AlignDistilError
from shards.format.encoding.seal import sealed
from shards.format.writer import json_bytes
from student.options import DistillArguments
from student.train.__main__ import main as train_main
from student.train.__main__ import train

V = 18
SMALL = {"top_k": 5, "max_top_k": 12, "tokens_per_shard": 20}


def snapshot(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refusal(action):
    """The message of the error that ends `action`; asserts that it is ours and one line."""
    with pytest.raises(AlignDistilError) as caught:
        action()
    message = str(caught.value)
    assert message.strip() and "\n" not in message
    assert isinstance(caught.value, (ValueError, OSError))
    return message


@pytest.fixture(scope="module")
def cache(trio_folders, tmp_path_factory):
    """Six chosen responses in several shards, of a trio that no test changes."""
    folder = tmp_path_factory.mktemp("bad") / "cache"
    data = write_jsonl(folder.parent / "pairs.jsonl", make_pairs(6))
    build(build_options(trio_folders, data, folder, **SMALL))
    assert len(list(folder.glob("part-*.arrow"))) > 1
    return folder


@pytest.fixture
def copy(cache, tmp_path):
    return Path(shutil.copytree(cache, tmp_path / "cache"))


@pytest.fixture
def refuse_build(trio_folders, cache, tmp_path):
    """Runs a build that must be refused; its output folder, which has a file already, must not change."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")

    def run(trio=None, *, data=cache.parent / "pairs.jsonl", out=out, **overrides):
        before = snapshot(out)
        message = refusal(lambda: build(build_options(trio_folders | (trio or {}), data, out, **SMALL | overrides)))
        assert snapshot(out) == before
        return message

    return run


def arguments(cache, out, **overrides):
    settings = {
        "shards": [str(cache)], "output_dir": str(out), "use_cpu": True, "report_to": "none", "disable_tqdm": True,
        "save_strategy": "no", "per_device_train_batch_size": 2, "global_batch_size": 2, "max_steps": 1,
    }  # fmt: skip
    return DistillArguments(**settings | overrides)


@pytest.fixture
def refuse_train(cache, tmp_path):
    """Runs a training that must be refused; the cache and the output folder must not change."""
    out = tmp_path / "student"
    out.mkdir()
    (out / "model.safetensors").write_text("an earlier student")

    def run(cache=cache, **overrides):
        before = snapshot(out), snapshot(Path(cache))
        message = refusal(lambda: train(arguments(cache, out, **overrides)))
        assert (snapshot(out), snapshot(Path(cache))) == before
        return message

    return run


def changed_model(folder, out, **config):
    """A copy of a model's folder with some fields of its config changed."""
    shutil.copytree(folder, out)
    fields = json.loads((out / "config.json").read_text()) | config
    (out / "config.json").write_text(json.dumps(fields))
    return out


def with_weight(folder, out, name, index, value):
    shutil.copytree(folder, out)
    tensors = load_file(out / "model.safetensors")
    tensors[name][index] = value
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


# ---- options of the build

ROLES = "models: expected role=folder with a role of dpo, reverse, reference, got "
NODES = "expected 0 and at least two more increasing numbers, got "
PAIRS = (
    "pairs: expected anchor/negative out of dpo/reverse, dpo/reference, reference/reverse, reference/reference, got "
)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"models": ["dpo=a", "teacher=b"]}, f"{ROLES}'teacher=b'"),
        ({"models": ["dpo"]}, f"{ROLES}'dpo'"),
        ({"models": ["dpo=a"]}, "models: expected reference=..., got only dpo"),
        ({"models": ["reference=a"]}, "models: expected dpo=..., got only reference"),
        ({"models": []}, "models: expected dpo=..., got only nothing"),
        ({"models": ["dpo=a", "dpo=b"]}, "models: expected one folder for dpo, got 'a' and 'b'"),
        ({"models": ["dpo=a", "reference=b"], "pairs": ["dpo/reverse"]},
         "pairs: dpo/reverse needs --models reverse=..., got ['dpo=a', 'reference=b']"),
        ({"limit": 0}, "limit: expected 1 or more, got 0"),
        ({"top_k": 0}, "top_k: expected 1 or more, got 0"),
        ({"top_k": 19, "max_top_k": 30}, "top_k: expected at most the vocabulary's 18 tokens, got 19"),
        ({"top_k": 19, "support": "fixed"}, "top_k: expected at most the vocabulary's 18 tokens, got 19"),
        (
            {"device_map": "auto", "models_in_memory": "one"},
            "device_map: expected none with models_in_memory one, got 'auto'",
        ),
        ({"max_top_k": 4}, "max_top_k: expected at least top_k = 5, got 4"),
        ({"min_top_k": 6}, "min_top_k: expected at most top_k = 5, got 6"),
        ({"max_length": 1}, "max_length: expected 2 or more, got 1"),
        ({"tokens_per_shard": 0}, "tokens_per_shard: expected 1 or more, got 0"),
        ({"gain_nodes": [1.0, 2.0, 3.0]}, f"gain_nodes: {NODES}[1.0, 2.0, 3.0]"),
        ({"gain_nodes": [0.0, 2.0, 2.0]}, f"gain_nodes: {NODES}[0.0, 2.0, 2.0]"),
        ({"strength_nodes": [0.0, 1.0]}, f"strength_nodes: {NODES}[0.0, 1.0]"),
        ({"strength_nodes": [0.0, 1.0, float("inf")]}, f"strength_nodes: {NODES}[0.0, 1.0, inf]"),
        ({"gain_nodes": [0.0, 2.0, 3.0]},
         "gain_nodes and strength_nodes: expected lists of one length, got 3 and 7"),
        ({"strength_nodes": [0.0, 1e-4, 1.0, 2.0, 3.0, 4.0, 5.0]},
         "strength_nodes: expected 0.001 or more after 0, got 0.0001"),
        ({"pairs": ["dpo-reverse"]}, f"{PAIRS}'dpo-reverse'"),
        ({"pairs": ["dpo/dpo"]}, f"{PAIRS}'dpo/dpo'"),
        ({"pairs": []}, "pairs: expected one or more different pairs, got []"),
        ({"pairs": ["dpo/reverse"] * 2},
         "pairs: expected one or more different pairs, got ['dpo/reverse', 'dpo/reverse']"),
        ({"support": "wide"}, "support: expected one of adaptive, fixed, got 'wide'"),
        ({"dtype": "half"}, "dtype: expected one of auto, float32, float16, bfloat16, got 'half'"),
        ({"tf32": True}, "tf32: expected it with --dtype float32 on a GPU, got float32 on cpu"),
        ({"tf32": True, "dtype": "float16"}, "tf32: expected it with --dtype float32 on a GPU, got float16 on cpu"),
        ({"responses": "all"}, "responses: expected one of chosen, rejected, both, got 'all'"),
    ],
    ids=str,
)  # fmt: skip
def test_an_option_out_of_range(refuse_build, overrides, message):
    assert refuse_build(**overrides) == message


def test_a_device_that_is_not_here(refuse_build):
    assert refuse_build(device="gpu").startswith("device: expected auto, cpu, cuda or cuda:N, got 'gpu' (")


def test_an_output_folder_that_is_a_file(trio_folders, cache, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "cache"):
        options = build_options(trio_folders, cache.parent / "pairs.jsonl", out, **SMALL)
        assert refusal(lambda options=options: build(options)) == (
            f"out: expected a folder to write into, got {file}, a file"
        )
    assert file.read_text() == "mine"


# ---- models of the build


def test_a_model_folder_that_is_not_there(refuse_build, tmp_path):
    assert refuse_build({"dpo": tmp_path / "no"}) == f"{tmp_path}/no: expected a model folder, found none"
    assert refuse_build({"dpo": "no/such"}).startswith("no/such: expected a model folder or a hub name, got ")


def test_a_model_folder_without_safetensors(refuse_build, refuse_train, trio_folders, tmp_path):
    folder = Path(shutil.copytree(trio_folders["dpo"], tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    expected = f"{folder}: expected model*.safetensors, found no weights"
    assert (refuse_build({"dpo": folder}), refuse_train(model=str(folder))) == (expected, expected)
    torch.save({}, folder / "pytorch_model.bin")
    expected = f"{folder}: expected model*.safetensors, found only pickle weights (pytorch_model.bin)"
    assert (refuse_build({"dpo": folder}), refuse_train(model=str(folder))) == (expected, expected)


def test_a_model_folder_without_config(refuse_build, trio_folders, tmp_path):
    folder = Path(shutil.copytree(trio_folders["dpo"], tmp_path / "model"))
    (folder / "config.json").unlink()
    assert refuse_build({"dpo": folder}) == f"{folder}: expected a model folder with config.json, found none"


def test_a_model_folder_without_tokenizer(refuse_build, refuse_train, trio_folders, tmp_path):
    folder = Path(shutil.copytree(trio_folders["dpo"], tmp_path / "model"))
    for path in folder.glob("tokenizer*"):
        path.unlink()
    expected = f"{folder}: expected a tokenizer in the folder, found none"
    assert (refuse_build({"dpo": folder}), refuse_train(model=str(folder))) == (expected, expected)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_damaged_file_of_a_model(refuse_build, refuse_train, trio_folders, tmp_path, file):
    folder = Path(shutil.copytree(trio_folders["dpo"], tmp_path / "model"))
    (folder / file).write_bytes((folder / file).read_bytes()[:200])
    for message in (refuse_build({"dpo": folder}), refuse_train(model=str(folder))):
        assert str(folder) in message
        assert re.search(
            ": expected a (tokenizer|causal language|model that transformers|model folder, or a hub name).*, got ",
            message,
        )


def test_weights_that_the_config_asks_for_and_the_file_lacks(refuse_build, refuse_train, trio_folders, tmp_path):
    deeper = changed_model(trio_folders["dpo"], tmp_path / "deeper", num_hidden_layers=3)
    missing = "expected weights for model.layers.2.input_layernorm.weight, found none"
    assert refuse_build({"dpo": deeper}) == f"dpo ({deeper}): {missing}"
    assert refuse_train(model=str(deeper)) == f"{deeper}: {missing}"
    wider = changed_model(trio_folders["dpo"], tmp_path / "wider", hidden_size=32)
    other = "expected lm_head.weight of shape [18, 32], as the config says, got [18, 16]"
    assert refuse_build({"dpo": wider}) == f"dpo ({wider}): {other}"
    assert refuse_train(model=str(wider)) == f"{wider}: {other}"


def test_tokenizers_that_differ_name_the_first_token_that_does(refuse_build, refuse_train, trio_folders, tmp_path):
    folder = Path(shutil.copytree(trio_folders["reverse"], tmp_path / "model"))
    words = [{"dog": "hound", "tree": "bush"}.get(word, word) for word in WORDS]
    make_tokenizer(words).save_pretrained(folder)
    differ = "differ: token 'dog' has id 6 in {0} and none in {1}"
    assert refuse_build({"reverse": folder}) == f"tokenizers of dpo and reverse {differ.format('dpo', 'reverse')}"
    assert refuse_train(model=str(folder)) == (
        f"tokenizers of the cache and the student {differ.format('the cache', 'the student')}"
    )


def test_an_output_layer_narrower_than_the_vocabulary(refuse_build, refuse_train, tmp_path):
    folder = save(make_llama(0, V - 1), tmp_path / "model")
    for role in ("dpo", "reverse", "reference"):
        assert refuse_build({role: folder}) == f"{role}: expected an output layer of 18 rows or more, got 17"
    assert refuse_train(model=str(folder)) == "student: expected an output layer of 18 rows or more, got 17"


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_logits_that_are_not_finite(refuse_build, refuse_train, trio_folders, tmp_path, value):
    for role in ("dpo", "reverse", "reference"):
        folder = with_weight(trio_folders[role], tmp_path / role, "lm_head.weight", (7, 3), float(value))
        assert re.fullmatch(
            rf"{role}: expected finite logits, got -?{value} for sample \d/chosen at token \d+",
            refuse_build({role: folder}),
        )
    got = refuse_train(model=str(folder))
    assert re.fullmatch(rf"student: expected finite logits of LlamaForCausalLM, got -?{value}", got)


def test_shards_written_before_a_bad_logit_are_kept(trio_folders, tmp_path):
    # only one row has the word whose embedding is broken, and it is not among those that the speed is told from
    good = {"prompt": "the", "chosen": " cat sat on the mat and the dog ran under the tree", "rejected": " a"}
    rows = [*[good] * 4, {"prompt": "a cat", "chosen": " slept", "rejected": " a"}, *[good] * 36]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    row = make_tokenizer().get_vocab()["slept"]
    broken = with_weight(trio_folders["reverse"], tmp_path / "broken", "model.embed_tokens.weight", row, float("nan"))
    options = build_options(
        trio_folders | {"reverse": broken}, data, tmp_path / "out", top_k=5, support="fixed", tokens_per_shard=1
    )
    expected = "reverse: expected finite hidden states, got nan for sample 4/chosen at token 2"
    assert refusal(lambda: build(options)) == expected
    before = snapshot(tmp_path / "out")
    assert [name for name in before if name.startswith("part-")] == [f"part-0000{i}.arrow" for i in range(4)]
    assert refusal(lambda: build(options)) == expected
    assert snapshot(tmp_path / "out") == before


def test_a_model_whose_logits_are_not_body_and_output_layer(refuse_build, refuse_train, monkeypatch):
    plain = LlamaForCausalLM.forward

    def scaled(self, *args, **kwargs):
        output = plain(self, *args, **kwargs)
        output.logits = output.logits * 1.5
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", scaled)
    expected = (
        r"{}: expected the logits of LlamaForCausalLM from its body and output layer, got a difference of [\d.]+; "
        "this model class is not supported"
    )
    assert re.fullmatch(expected.format("dpo"), refuse_build())
    assert re.fullmatch(expected.format("student"), refuse_train())


def test_code_that_comes_with_a_model_is_not_run(refuse_build, refuse_train, trio_folders, tmp_path):
    auto_map = {"AutoConfig": "code.Configuration", "AutoModelForCausalLM": "code.Model"}
    folder = changed_model(trio_folders["dpo"], tmp_path / "model", model_type="ours", auto_map=auto_map)
    (folder / "code.py").write_text("raise SystemExit('this code ran')")
    code = "got one that needs code of its own, which runs with --trust_remote_code only"
    assert refuse_build({"dpo": folder}) == f"{folder}: expected a model that transformers knows, {code}"
    assert refuse_train(model=str(folder)) == f"{folder}: expected a causal language model, {code}"


@pytest.fixture
def adapter(trio_folders, tmp_path):
    """A LoRA adapter over the dpo model, with a tokenizer."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(load(trio_folders["dpo"]), config)
    adapted.save_pretrained(tmp_path / "adapter")
    make_tokenizer().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def set_adapter_field(adapter, **fields):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_an_adapter_whose_base_is_not_there(refuse_build, refuse_train, adapter, tmp_path):
    set_adapter_field(adapter, base_model_name_or_path=str(tmp_path / "no"))
    missing = f"{tmp_path}/no: expected a model folder, found none"
    assert refuse_build({"dpo": adapter}) == f"{adapter}: base of the adapter: {missing}"
    assert refuse_train(model=str(adapter)) == f"{adapter}: base of the adapter: {missing}"
    set_adapter_field(adapter, base_model_name_or_path=None)
    assert refuse_build({"dpo": adapter}) == (
        f"{adapter}/adapter_config.json: expected base_model_name_or_path, got None"
    )


def test_an_adapter_that_does_not_fit_its_config(refuse_build, refuse_train, adapter):
    set_adapter_field(adapter, r=3)
    for message in (refuse_build({"dpo": adapter}), refuse_train(model=str(adapter))):
        assert re.search(": expected a peft adapter .* base, got .*size mismatch for .*lora_A", message)


def test_an_adapter_that_lacks_a_weight(refuse_build, refuse_train, adapter):
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop("base_model.model.model.layers.1.mlp.up_proj.lora_B.weight")
    save_file(tensors, path)
    for message in (refuse_build({"dpo": adapter}), refuse_train(model=str(adapter))):
        assert re.search(r"expected weights for .*layers\.1\.mlp\.up_proj\.lora_B\..*, found none$", message)


# ---- data of the build

PAIR = '{"prompt": "the", "chosen": " cat", "rejected": " dog"}'


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([PAIR, "", '{"prompt": "the'], "line 3: expected a JSON object, "
         "got text that is not JSON (Invalid control character at column 16)"),
        ([PAIR, "{'prompt': 1}"], "line 2: expected a JSON object, "
         "got text that is not JSON (Expecting property name enclosed in double quotes at column 2)"),
        ([PAIR, "[1]"], "line 2: expected a JSON object, got list"),
        (['"text"'], "line 1: expected a JSON object, got str"),
        (['{"question": "a", "answer": "b"}'],
         "line 1: expected the columns of one of prompt+chosen+rejected, chosen+rejected, prompt+completion, messages, "
         "got question, answer; --columns prompt=NAME ... names others"),
        ([PAIR, '{"prompt": "a", "chosen": " cat"}'], "line 2 column rejected: expected text, got nothing"),
        ([PAIR, '{"prompt": "a", "chosen": 3, "rejected": " dog"}'], "line 2 column chosen: expected text, got int"),
        ([PAIR, '{"prompt": "a", "chosen": "", "rejected": " dog"}'],
         "line 2 chosen: expected a response, got an empty one"),
    ],
    ids=["cut", "quotes", "list", "text", "columns", "missing", "number", "empty"],
)  # fmt: skip
def test_a_row_that_cannot_be_used(refuse_build, tmp_path, lines, message):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(f"{line}\n" for line in lines))
    assert refuse_build(data=data) == f"rows.jsonl {message}"


def long_prompt(tmp_path):
    rows = make_pairs(4)
    rows[2]["prompt"] = " ".join(["the"] * 20)
    return write_jsonl(tmp_path / "rows.jsonl", rows)


def test_a_prompt_as_long_as_max_length_is_skipped_and_counted(trio_folders, tmp_path, capsys):
    data = long_prompt(tmp_path)
    manifest = build(build_options(trio_folders, data, tmp_path / "out", max_length=20, **SMALL))
    assert manifest.plan.skipped["overlong"] == 1
    assert manifest.plan.rows == 3
    printed = capsys.readouterr().out
    assert "responses  3, from 4 rows of data, 1 skipped as overlong" in printed
    assert "responses  3, 1 skipped as overlong" in printed


def test_a_prompt_as_long_as_max_length_is_an_error_where_that_was_asked_for(refuse_build, tmp_path):
    assert refuse_build(data=long_prompt(tmp_path), max_length=20, on_overlong="error") == (
        "rows.jsonl line 3 chosen: expected a token to train on within 20 tokens, got the first one at 20"
    )


def test_data_without_a_row_that_is_left(refuse_build, tmp_path):
    data = write_jsonl(tmp_path / "rows.jsonl", make_pairs(4))
    left = "no response left: 4 rows read, skipped 4 overlong, 0 empty"
    assert refuse_build(data=data, max_length=2) == f"{data}: {left}"
    data.write_text("\n")
    assert refuse_build(data=data) == f"{data}: no response left: 0 rows read, skipped 0 overlong, 0 empty"


def test_data_that_is_not_there(refuse_build, cache, tmp_path):
    expected = "expected a data file, a folder or a hub name, found nothing there"
    assert refuse_build(data=tmp_path / "no.jsonl") == f"{tmp_path}/no.jsonl: {expected}"
    pairs = cache.parent / "pairs.jsonl"
    assert refuse_build(split="test") == f"{pairs}: expected split train, the only one of a file, got test"


# ---- a folder that holds something else


@pytest.mark.parametrize(
    ("field", "overrides", "old", "new"),
    [
        ("options.top_k", {"top_k": 4}, "5", "4"),
        ("options.responses", {"responses": "both"}, '"chosen"', '"both"'),
        ("options.limit", {"limit": 3}, "null", "3"),
        ("options.max_length", {"max_length": 6}, "2048", "6"),
        ("options.pairs", {"pairs": ["dpo/reverse"]}, '["dpo/reverse", "reference/reference"]', '["dpo/reverse"]'),
        ("options.tokens_per_shard", {"tokens_per_shard": 21}, "20", "21"),
        ("numerics.dtype", {"dtype": "float16"}, '"float32"', '"float16"'),
        ("numerics.attn_implementation", {"attn_implementation": "eager"}, "null", '"eager"'),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_another_build_names_the_option_that_differs(
    refuse_build, copy, field, overrides, old, new, finished
):
    if not finished:
        (copy / "manifest.json").unlink()
    expected = f"{copy}: holds another build, {field}: expected {old}, got {new}"
    assert refuse_build(out=copy, **overrides) == expected


def test_a_folder_of_another_build_names_the_input_that_differs(refuse_build, copy, trio_folders, tmp_path):
    def field(*trio, **overrides):
        message = refuse_build(*trio, out=copy, **overrides)
        assert message.startswith(f"{copy}: holds another build, ")
        return message.split(": ")[1].split(", ")[1]

    for role in ("dpo", "reverse", "reference"):
        moved = with_weight(trio_folders[role], tmp_path / role, "model.norm.weight", 3, 1.25)
        assert field({role: moved}) == f"models.{role}.weights_sha256"
    other = changed_model(trio_folders["dpo"], tmp_path / "other", rms_norm_eps=1e-3)
    assert field({"dpo": other}) == "models.dpo.config_sha256"
    chat = Path(shutil.copytree(trio_folders["reference"], tmp_path / "chat"))
    (chat / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert field({"reference": chat}) == "tokenizer.chat_template_sha256"
    assert field(data=write_jsonl(tmp_path / "rows.jsonl", make_pairs(6, seed=9))) == "data.rows_sha256"


def test_shards_without_a_plan(refuse_build, copy):
    for file in ("plan.json", "manifest.json"):
        (copy / file).unlink()
    assert refuse_build(out=copy) == f"{copy}: expected no shards without a plan.json, found part-00000.arrow"


DAMAGED = {
    "": "expected JSON, got Expecting value: line 1 column 1 (char 0)",
    "[]": "expected a JSON object, got list",
    '{"rows": NaN}': "expected JSON, got NaN, which JSON does not have",
    '{"format": "parquet"}': "expected format 'aligndistil-cache', got 'parquet'",
    '{"format": "aligndistil-cache", "format_version": 9}': "expected format_version 3, got 9",
}


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_plan_or_manifest(refuse_build, refuse_train, copy, text):
    (copy / "manifest.json").write_text(text)
    expected = f"{copy}/manifest.json: {DAMAGED[text]}"
    assert (refuse_build(out=copy), refuse_train(copy)) == (expected, expected)
    (copy / "manifest.json").unlink()
    (copy / "plan.json").write_text(text)
    assert refuse_build(out=copy) == f"{copy}/plan.json: {DAMAGED[text]}"


def test_a_plan_that_lacks_a_field_and_a_manifest_that_was_edited(refuse_build, refuse_train, copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"log_threshold": -3.0}))
    expected = f"{copy}/manifest.json: expected build_sha256 {manifest['build_sha256']}, got "
    assert refuse_train(copy).startswith(expected)
    assert refuse_build(out=copy).startswith(expected)
    (copy / "manifest.json").unlink()
    plan = json.loads((copy / "plan.json").read_text())
    (copy / "plan.json").write_text(json.dumps(plan | {"rows": 5, "note": "mine"}))
    assert refuse_build(out=copy).startswith(f"{copy}/plan.json: ")
    plan.pop("pairs")
    (copy / "plan.json").write_text(json.dumps(plan))
    assert refuse_build(out=copy) == f"{copy}/plan.json: expected a plan of format version 3, got KeyError('pairs')"


def test_a_finished_cache_that_lost_a_shard_is_not_said_to_be_done(refuse_build, copy):
    size = (copy / "part-00001.arrow").stat().st_size
    (copy / "part-00001.arrow").unlink()
    assert refuse_build(out=copy) == f"{copy}/part-00001.arrow: expected a shard of {size} bytes, found no file"


def test_a_begun_build_with_a_shard_that_is_none(refuse_build, copy):
    (copy / "manifest.json").unlink()
    (copy / "part-00000.arrow").write_text("something else")
    assert refuse_build(out=copy).startswith(f"{copy}/part-00000.arrow: expected an Arrow IPC file, got ")


# ---- the cache that training reads


def test_a_folder_that_is_no_cache(refuse_train, tmp_path, copy):
    (tmp_path / "empty").mkdir()
    assert refuse_train(tmp_path / "empty") == f"{tmp_path}/empty: expected a cache, found no manifest.json"
    assert refuse_train(tmp_path / "no") == f"{tmp_path}/no: expected a cache, found no manifest.json"
    (copy / "manifest.json").unlink()
    assert refuse_train(copy) == (
        f"{copy}: expected a finished cache, found a build that was begun; run it again to finish"
    )


def test_a_shard_that_is_missing_or_cut_short(refuse_train, copy):
    shard = copy / "part-00001.arrow"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-9])
    assert refuse_train(copy) == f"{shard}: expected {len(whole)} bytes, got {len(whole) - 9}"
    shard.unlink()
    assert refuse_train(copy) == f"{shard}: expected a shard of {len(whole)} bytes, found no file"


def test_an_altered_byte_is_refused_or_changes_nothing(cache, copy, tmp_path):
    def loss():
        settings = {"per_device_train_batch_size": 6, "global_batch_size": 6, "learning_rate": 0.0}
        settings["overwrite_output_dir"] = True
        return train(arguments(copy, tmp_path / "out", **settings)).state.log_history[0]["loss"]

    expected = loss()
    shard = copy / "part-00001.arrow"
    whole = shard.read_bytes()
    refused = 0
    for place in range(12, len(whole), len(whole) // 10):
        altered = bytearray(whole)
        altered[place] ^= 0x10
        shard.write_bytes(altered)
        try:
            assert loss() == expected
        except AlignDistilError as error:
            refused += 1
            assert str(error).startswith(str(shard)) and "\n" not in str(error)
    assert refused > 3
    shard.write_bytes(whole)
    assert loss() == expected


def test_a_reference_that_is_no_longer_where_it_was(refuse_train, copy, tmp_path):
    provenance = ShardCache(copy).provenance
    provenance["models"]["reference"] = str(tmp_path / "gone")
    (copy / "provenance.json").write_bytes(sealed(json_bytes(provenance)))
    assert refuse_train(copy) == (
        f"{copy}: was built with the reference {tmp_path}/gone, which is not there; give --model"
    )
    nowhere = f"{copy}: expected the place of its reference, found none; give --model"
    (copy / "provenance.json").write_text("{}")
    assert refuse_train(copy) == nowhere
    (copy / "provenance.json").unlink()
    assert refuse_train(copy) == nowhere


def test_a_student_folder_that_is_not_there(refuse_train, tmp_path):
    assert refuse_train(model=str(tmp_path / "no")) == f"{tmp_path}/no: expected a model folder, found none"
    assert refuse_train(model="no/such").startswith("no/such: expected a model folder or a hub name, got no folder, ")


@pytest.fixture(scope="module")
def cache_without_reverse(trio_folders, cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "cache"
    two = {role: path for role, path in trio_folders.items() if role != "reverse"}
    build(build_options(two, cache.parent / "pairs.jsonl", folder, **SMALL))
    return folder


def test_a_teacher_that_the_cache_cannot_serve(refuse_train, cache, cache_without_reverse):
    what = "adaptive strength, beta 0.1, gain 10"
    assert refuse_train(cache_without_reverse) == (
        f"{cache_without_reverse}: a teacher with anchor dpo, negative reverse, {what} needs the model 'reverse', "
        "the cache was built with dpo, reference"
    )
    assert refuse_train(anchor="reference", negative="reverse") == (
        f"{cache}: a teacher with anchor reference, negative reverse, {what} needs the pair reference/reverse, "
        "the cache serves dpo/reverse, reference/reference; "
        "build another with --pairs dpo/reverse reference/reference reference/reverse"
    )
    assert refuse_train(gain=31.0) == (
        f"{cache}: expected a gain of 30 or less, got 31; build another with --gain_nodes that reach it"
    )
    assert refuse_train(teacher="linear", kl_coef=0.02) == (
        f"{cache}: expected a strength beta / kl_coef of 4 or less, got 5; "
        "build another with --strength_nodes that reach it"
    )


def test_caches_of_different_models(refuse_train, cache, cache_without_reverse):
    expected = f"{cache_without_reverse}: is of another kind, models.reverse: expected "
    assert refuse_train(shards=[str(cache), str(cache_without_reverse)]).startswith(expected)


def test_nothing_to_train_on(refuse_train, cache):
    assert refuse_train(train_on="rejected") == f"{cache}: expected rejected responses, found none"


# ---- options of the training


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"beta": 0.0}, "beta: expected a finite number > 0, got 0.0"),
        ({"beta": float("nan")}, "beta: expected a finite number > 0, got nan"),
        ({"gain": -1.0}, "gain: expected a finite number >= 0, got -1.0"),
        ({"kl_coef": 0.0}, "kl_coef: expected a finite number > 0, got 0.0"),
        ({"divergence": "jsd", "jsd_weight": 1.0},
         "jsd_weight: expected a number between 0 and 1, both excluded, got 1.0"),
        ({"divergence": "tv"}, "divergence: expected one of reverse_kl, forward_kl, jsd, got 'tv'"),
        ({"teacher": "best"}, "teacher: expected one of aligndistil, adaptive, contrastive, linear, got 'best'"),
        ({"anchor": "reverse"}, "anchor: expected one of dpo, reference, got 'reverse'"),
        ({"train_on": "all"}, "train_on: expected one of chosen, rejected, both, got 'all'"),
        ({"reduction": "mean"}, "reduction: expected one of sequence, token, got 'mean'"),
        ({"dtype": "half"}, "dtype: expected one of auto, float32, float16, bfloat16, got 'half'"),
        ({"global_batch_size": 3},
         "global_batch_size: expected a multiple of 2 (per_device_train_batch_size * processes), got 3"),
        ({"global_batch_size": 0},
         "global_batch_size: expected a multiple of 2 (per_device_train_batch_size * processes), got 0"),
        ({"gradient_accumulation_steps": 3},
         "global_batch_size and gradient_accumulation_steps: expected one of them, got 2 and 3"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps: expected 1 or more, got 0"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size: expected 1 or more, got 0"),
        ({"label_smoothing_factor": 0.1},
         "label_smoothing_factor: expected 0.0 here (targets are whole distributions), got 0.1"),
        ({"use_liger_kernel": True},
         "use_liger_kernel: expected False here (the loss is fused with the output layer already), got True"),
        ({"train_sampling_strategy": "group_by_length"},
         "train_sampling_strategy: expected 'random' here (the order is the cache's own, a function of seed and "
         "epoch), got 'group_by_length'"),
        ({"auto_find_batch_size": True},
         "auto_find_batch_size: expected False here (the batch size is part of the order), got True"),
        ({"dataloader_drop_last": True},
         "dataloader_drop_last: expected False here (the last batch is filled up with rows of weight zero), got True"),
        ({"neftune_noise_alpha": 5.0},
         "neftune_noise_alpha: expected None here (the teacher was computed without noise), got 5.0"),
        ({"shards": []}, "shards: expected one or more folders, got none"),
        ({"learning_rate": -1.0}, "learning_rate: expected 0 or more, got -1.0"),
        ({"max_steps": -1, "num_train_epochs": 0.0}, "num_train_epochs: expected more than 0, got 0.0"),
        ({"lora_r": 0}, "lora_r: expected 1 or more, got 0"),
        ({"bf16": True, "fp16": True}, "TrainingArguments: At most one of fp16 and bf16 can be True, but not both"),
        ({"lr_scheduler_kwargs": {"speed": 1}, "warmup_steps": 0},
         "lr_scheduler_kwargs: get_cosine_with_min_lr_schedule_with_warmup() got an unexpected keyword argument "
         "'speed'"),
        ({"use_peft": True, "lora_target_modules": ["nose"]},
         "lora_target_modules: Target modules {'nose'} not found in the base model. Please check the target modules "
         "and try again."),
    ],
    ids=str,
)  # fmt: skip
def test_an_argument_that_cannot_be(refuse_train, overrides, message):
    assert refuse_train(**overrides) == message


@pytest.mark.parametrize("overrides", [{"optim": "sprint"}, {"lr_scheduler_type": "zigzag"}, {"report_to": "nobody"}])
def test_an_argument_that_transformers_refuses(refuse_train, overrides):
    (value,) = overrides.values()
    assert re.match(f"(TrainingArguments|transformers' Trainer): {value} is not ", refuse_train(**overrides))


def test_an_output_folder_of_the_training_that_is_a_file(cache, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    assert str(file) in refusal(lambda: train(arguments(cache, file)))
    assert file.read_text() == "mine"


def test_several_gpus_without_a_launcher(refuse_train, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 4))
    assert refuse_train() == (
        "expected one GPU per process, got 4 without a launcher; run torchrun --nproc_per_node 4 -m student.train ..."
    )


def test_a_checkpoint_that_is_missing_or_of_another_run(refuse_train, cache, tmp_path):
    train(arguments(cache, tmp_path / "run", save_strategy="steps", save_steps=1, warmup_steps=0))
    checkpoint = tmp_path / "run" / "checkpoint-1"
    before = snapshot(checkpoint)
    assert refuse_train(resume_from_checkpoint=str(checkpoint), gain=5.0, max_steps=2, warmup_steps=0) == (
        f"{checkpoint}: is of another run, teacher.gain: expected 10.0, got 5.0; --resume_despite "
        "teacher.gain goes on with the new value"
    )
    assert snapshot(checkpoint) == before
    assert refuse_train(resume_from_checkpoint=str(tmp_path / "no")) == (
        f"resume_from_checkpoint: expected a folder, got '{tmp_path}/no'"
    )
    (checkpoint / "distill_run.json").unlink()
    assert refuse_train(resume_from_checkpoint=str(checkpoint), warmup_steps=0) == (
        f"{checkpoint}: expected a checkpoint with distill_run.json, found none"
    )


# ---- the commands


@pytest.mark.parametrize(
    ("main", "flags", "message"),
    [
        (build_main, [], "the following arguments are required: --data, --models"),
        (build_main, ["--models", "dpo=a", "--data", "b", "--topk", "5"], "unrecognized arguments: --topk 5"),
        (build_main, ["--top_k", "many"], "argument --top_k/--top-k: invalid int value: 'many'"),
        (train_main, ["--gian", "5"], "unrecognized arguments: --gian 5"),
        (train_main, ["--gai", "5"], "unrecognized arguments: --gai 5"),
        (build_main, ["--models", "dpo=a", "--data", "b", "--min_top", "5"], "unrecognized arguments: --min_top 5"),
        (train_main, ["--train-on", "all"], "argument --train_on/--train-on: invalid choice: 'all' "),
        (
            train_main,
            ["--global_batch_size"],
            "argument --global_batch_size/--global-batch-size: expected one argument",
        ),
    ],
)
def test_a_flag_that_cannot_be(main, flags, message):
    got = refusal(lambda: main(flags))
    assert got.startswith(message)
    assert got.endswith(" (--help lists all flags)")


def test_a_command_prints_one_line_and_exits_with_2(trio_folders, cache, tmp_path):
    models = [f"{role}={folder}" for role, folder in trio_folders.items()]
    (tmp_path / "rows.jsonl").write_text("{}\n")
    runs = {
        "rows.jsonl line 1: expected the columns of one of": [
            "precompute.build", "--models", *models, "--data", "rows.jsonl", "--out", "out", "--top_k", "5",
        ],
        f"{cache}: expected a gain of 30 or less, got 31; build another with --gain_nodes that reach it": [
            "student.train", "--shards", str(cache), "--gain", "31", "--output_dir", "student", "--use_cpu",
        ],
    }  # fmt: skip
    before = snapshot(cache)
    for message, (module, *flags) in runs.items():
        done = fresh.run(module, flags, tmp_path, tmp_path / module)
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and errors[0].startswith(f"error: {message}"), done.stderr
        assert done.stderr.endswith(f"{errors[0]}\n")
        assert "Traceback" not in done.stderr + done.stdout and "usage" not in done.stderr + done.stdout
        assert done.returncode == 2
    assert snapshot(cache) == before
    assert not (tmp_path / "out").exists() and not (tmp_path / "student").exists()


# ---- what would be lost, or would do nothing


def test_a_folder_with_a_model_is_not_written_over(refuse_train, cache, tmp_path):
    train(arguments(cache, tmp_path / "run", learning_rate=0.0))
    before = snapshot(tmp_path / "run")
    assert refuse_train(output_dir=str(tmp_path / "run")) == (
        f"output_dir: expected a folder without a model, found config.json in {tmp_path}/run; give another one, "
        "--resume_from_checkpoint true or --overwrite_output_dir true"
    )
    assert snapshot(tmp_path / "run") == before


def test_a_student_is_not_written_over_itself(refuse_train, trio_folders):
    folder = str(trio_folders["dpo"])
    assert refuse_train(model=folder, output_dir=folder) == (
        f"output_dir: expected another folder than the student's own, got {folder}"
    )


def test_a_run_that_is_all_warm_up_is_refused(refuse_train):
    assert refuse_train(max_steps=1) == (
        "warmup_steps: expected fewer than the run's 1, got 1: the student would hardly change; lower "
        "--global_batch_size, train for longer or give --warmup_steps 0"
    )


def test_a_cache_to_evaluate_on_must_be_of_the_same_kind(refuse_train, trio_folders, pairs_file, tmp_path):
    other = tmp_path / "other"
    nodes = {"gain_nodes": [0.0, 5.0, 30.0], "strength_nodes": [0.0, 1.0, 4.0]}
    build(build_options(trio_folders, pairs_file, other, limit=2, **SMALL, **nodes))
    assert refuse_train(eval_shards=[str(other)]).startswith(
        f"{other}: is of another kind than the training cache, gain_nodes: expected "
    )


def test_rows_longer_than_a_model_has_positions_are_refused(pairs_file, trio_folders, tmp_path):
    short = save(make_llama(3, max_position_embeddings=8), tmp_path / "short")
    message = refusal(
        lambda: build(build_options(trio_folders | {"dpo": short}, pairs_file, tmp_path / "out", **SMALL))
    )
    assert re.fullmatch(
        r"dpo: expected rows of at most 8 tokens \(max_position_embeddings\), got one of \d+; build with .*_length 8",
        message,
    )


def test_a_student_with_fewer_positions_than_the_rows_is_refused(refuse_train, tmp_path):
    short = save(make_llama(3, max_position_embeddings=8), tmp_path / "short")
    assert refuse_train(model=str(short)).startswith("student: expected rows of at most 8 tokens")


def test_a_reference_with_other_weights_than_were_scored_is_refused(refuse_train, copy, trio_folders, tmp_path):
    other = save(make_llama(9), tmp_path / "other")
    provenance = ShardCache(copy).provenance
    provenance["models"]["reference"] = str(other)
    (copy / "provenance.json").write_bytes(sealed(json_bytes(provenance)))
    assert refuse_train(shards=[str(copy)], model=None) == (
        f"{copy}: expected the reference {other} as it was scored, got other weights; give --model"
    )


@pytest.mark.parametrize("file", ["index.arrow", "vocabulary.json", "tokenizer.json", "provenance.json"])
def test_a_file_of_the_users_own_is_not_written_over(trio_folders, pairs_file, tmp_path, file):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / file).write_text("mine")
    message = refusal(lambda: build(build_options(trio_folders, pairs_file, tmp_path / "out", **SMALL)))
    assert message.startswith(f"{tmp_path}/out/{file}: expected nothing of this name where no build was begun")
    assert snapshot(tmp_path / "out") == {file: b"mine"}
