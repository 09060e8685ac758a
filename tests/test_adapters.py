"""Adapters: scoring, checking, merging and training give the values of peft's own forward pass, or are refused."""

import json

import pytest
import torch
from conftest import build_options
from tiny import WORDS, load, make_llama, make_pairs, make_tokenizer, save, write_jsonl

from precompute.build.build import build
from precompute.check.__main__ import check
from precompute.check.options import CheckOptions
from precompute.models import folders as models_module
from precompute.models import role_model
from precompute.models.adapters import shares_base
from precompute.models.folders import identity, load_merged, load_models
from precompute.models.made_from import require_same_inputs
from precompute.models.role_model import own_logits
from precompute.rollout.__main__ import rollout
from precompute.rollout.options import RolloutOptions
from precompute.teachers.__main__ import main as teachers_main
from shards import ShardCache
from shards.errors import ModelError
from shards.modelfiles.find import resolve
from student.load import load_model, load_tokenizer

peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # peft's, of kinds and layers that it calls unusual

V = len(WORDS) + 3
IDS = torch.tensor([[1, 5, 3, 7, 4, 9, 12, 6, 5, 11, 3, 14]])
QV = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
"""The matrices that most adapters here change."""


def lora(**fields):
    return peft.LoraConfig(**{"r": 2, **QV, **fields})


KINDS = {
    "LoRA": lora(),
    "LoRA with biases of its layers": lora(bias="lora_only"),
    "LoRA with all biases": lora(bias="all"),
    "LoRA with a bias in its matrices": lora(lora_bias=True),
    "DoRA": lora(use_dora=True),
    "PiSSA": lora(init_lora_weights="pissa"),
    "OLoRA": lora(init_lora_weights="olora"),
    "LoRA with modules to save": lora(modules_to_save=["embed_tokens", "lm_head", "norm"]),
    "LoRA with trained tokens": lora(trainable_token_indices=[3, 4, 5]),
    "LoRA of the embeddings": lora(target_modules=["embed_tokens", "lm_head", "q_proj"]),
    "LoRA with replicated layers": lora(layer_replication=[[0, 2], [1, 2]]),
    "AdaLoRA": peft.AdaLoraConfig(total_step=10, **QV),
    "IA3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "LoHa": peft.LoHaConfig(**QV),
    "LoKr": peft.LoKrConfig(**QV),
    "OFT": peft.OFTConfig(oft_block_size=4, **QV),
    "BOFT": peft.BOFTConfig(boft_block_size=4, bias="all", **QV),
    "VeRA": peft.VeraConfig(r=4, **QV),
    "LN tuning": peft.LNTuningConfig(target_modules=["input_layernorm", "norm"], task_type="CAUSAL_LM"),
    "trained tokens": peft.TrainableTokensConfig(token_indices=[3, 4, 5], target_modules=["embed_tokens"]),
}
SMALL = {"limit": 3, "top_k": 5, "max_top_k": 12}
SHARING = {"LoRA"}
UNMERGEABLE = {"LoRA with replicated layers"}


def make_adapter(base, folder, config, seed=5, tokens=None, **save_kwargs):
    """An adapter with all of its trained weights moved."""
    torch.manual_seed(seed)
    config.task_type = "CAUSAL_LM"
    model = load(base)
    if tokens:
        model.resize_token_embeddings(tokens)
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.2)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder, **save_kwargs)
    return folder


def as_peft_runs_it(folder):
    """Logits of the text, by peft's own loader and forward pass."""
    with torch.no_grad():
        return peft.AutoPeftModelForCausalLM.from_pretrained(str(folder)).eval()(input_ids=IDS).logits[0]


def as_we_score_it(model):
    with torch.no_grad(), model.active():
        return model.logits(model.hidden(IDS, torch.ones_like(IDS))[0])


def refusal(action):
    with pytest.raises(ModelError) as caught:
        action()
    return str(caught.value)


def set_field(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save(make_llama(0, attention_bias=True), tmp_path_factory.mktemp("adapters") / "base")


@pytest.fixture(scope="module")
def plain(base, tmp_path_factory):
    """A LoRA that can share its base."""
    return make_adapter(base, tmp_path_factory.mktemp("plain") / "reverse", lora(), seed=6)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_scored_as_peft_runs_it_and_so_are_the_others(base, plain, tmp_path, kind):
    folder = make_adapter(base, tmp_path / "dpo", KINDS[kind])
    assert shares_base(resolve(str(folder))) == (kind in SHARING)
    folders = {"dpo": folder, "reverse": plain, "reference": base}
    models = load_models({r: resolve(str(f)) for r, f in folders.items()}, V, dtype="auto", device="cpu")
    expected = {"dpo": as_peft_runs_it(folder), "reverse": as_peft_runs_it(plain)}
    with torch.no_grad():
        expected["reference"] = load(base)(input_ids=IDS).logits[0]
    assert (expected["dpo"] - expected["reference"]).abs().max() > 0.1, "the adapter does something"
    for role, model in models.items():
        torch.testing.assert_close(as_we_score_it(model), expected[role], atol=2e-5, rtol=0)
    require_merges_alike(folder, kind)


def require_merges_alike(folder, kind):
    """precompute and student both merge this adapter into a model with equal output, or both refuse it."""
    load_both = (
        lambda: load_merged(resolve(str(folder)), "model", dtype="auto", device="cpu"),
        lambda: load_model(str(folder), dtype="float32"),
    )
    for load_one in load_both:
        if kind in UNMERGEABLE:
            assert "expected a merged LORA to give its own logits, got a difference of " in refusal(load_one)
            continue
        model = load_one()
        assert all(weight.requires_grad for weight in model.parameters())
        with torch.no_grad():
            torch.testing.assert_close(model(input_ids=IDS).logits[0], as_peft_runs_it(folder), atol=1e-3, rtol=0)


def test_a_kind_that_cannot_be_merged_is_named(base, tmp_path):
    folder = make_adapter(base, tmp_path / "dpo", peft.LilyConfig(r=2, **QV))
    expected = "expected an adapter that its base can take up, got LILY ("
    assert refusal(lambda: load_model(str(folder), dtype="float32")).startswith(f"{folder}: {expected}")


def test_the_order_of_roles_does_not_matter(base, plain, tmp_path):
    biased = make_adapter(base, tmp_path / "dpo", lora(bias="lora_only"))
    other = make_adapter(base, tmp_path / "other", lora(), seed=8)
    folders = {"reference": base, "reverse": plain, "dpo": biased, "other": other}
    for roles in (list(folders), list(folders)[::-1]):
        models = load_models({r: resolve(str(folders[r])) for r in roles}, V, dtype="auto", device="cpu")
        assert len({id(model.model) for model in models.values()}) == 2, "the plain ones share"
        for role in ("reverse", "dpo", "other"):
            assert torch.equal(as_we_score_it(models[role]), as_peft_runs_it(folders[role]))


def test_weights_of_the_base_in_a_plain_looking_lora_are_seen(base, tmp_path):
    folder = make_adapter(base, tmp_path / "dpo", lora(), save_embedding_layers=True)
    assert not shares_base(resolve(str(folder)))


def test_a_field_that_nobody_knows_yet_gets_a_base_of_its_own(plain):
    config = plain / "adapter_config.json"
    before = config.read_text()
    assert shares_base(resolve(str(plain)))
    try:
        assert not shares_base(resolve(str(set_field(plain, new_in_peft={"changes": "the base"}))))
    finally:
        config.write_text(before)


@pytest.fixture(scope="module")
def biased_trio(base, plain, tmp_path_factory):
    """dpo moves the biases of the shared base."""
    dpo = make_adapter(base, tmp_path_factory.mktemp("biased") / "dpo", lora(bias="lora_only"))
    return {"dpo": dpo, "reverse": plain, "reference": base}


def test_a_base_that_was_changed_under_another_role_is_refused(biased_trio, monkeypatch):
    monkeypatch.setattr(models_module, "shares_base", lambda folder: True)
    folders = {role: resolve(str(folder)) for role, folder in biased_trio.items()}
    message = refusal(lambda: load_models(folders, V, dtype="auto", device="cpu"))
    assert message.startswith("re") and "expected the logits of LlamaForCausalLM" in message


def test_the_check_does_not_repeat_a_fault_of_the_build(biased_trio, pairs_file, tmp_path, monkeypatch):
    out = tmp_path / "cache"
    with monkeypatch.context() as fault:
        fault.setattr(models_module, "shares_base", lambda folder: True)
        fault.setattr(role_model, "require_same_logits", lambda *args, **kwargs: None)
        build(build_options(biased_trio, pairs_file, out, **SMALL))
        report = check(CheckOptions(shards=str(out), device="cpu"))
    assert not report.agrees and {text.split()[0] for text in report.disagreements} >= {"reference", "reverse"}
    build(build_options(biased_trio, pairs_file, tmp_path / "mended", **SMALL))
    for bodies in ("all", "one"):
        assert check(CheckOptions(shards=str(tmp_path / "mended"), models_in_memory=bodies, device="cpu")).agrees


# ---- what is refused


def commands(folder, base, pairs_file, out):
    """Every way to load a model, with this one in place of one role."""
    trio = {"dpo": folder, "reference": base}
    build_too = build_options(trio, pairs_file, out / "cache", **SMALL)
    rolled = RolloutOptions(model=str(folder), data=str(pairs_file), out=str(out / "r.jsonl"), device="cpu")
    taught = [
        "--reference",
        folder,
        "--data",
        pairs_file,
        "--out",
        out / "t",
        "--use_cpu",
        "True",
        "--report_to",
        "none",
    ]
    return {
        "build": lambda: build(build_too),
        "rollout": lambda: rollout(rolled),
        "teachers": lambda: teachers_main([str(word) for word in taught]),
        "student": lambda: load_model(str(folder), dtype="float32"),
        "student's tokenizer": lambda: load_tokenizer(str(folder)),
    }


@pytest.mark.parametrize(
    "config",
    [
        peft.PromptTuningConfig(num_virtual_tokens=3),
        peft.PrefixTuningConfig(num_virtual_tokens=3),
        peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=16),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_adapters_that_put_states_before_the_input_are_refused_everywhere(base, pairs_file, tmp_path, config):
    folder = make_adapter(base, tmp_path / "dpo", config)
    kind = config.peft_type.value
    expected = (
        f"{folder}: expected an adapter of the model's layers, got {kind}, which puts trained states before the input"
    )
    for name, command in commands(folder, base, pairs_file, tmp_path / "out").items():
        assert refusal(command) == expected, name
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "got"),
    [
        ({"peft_type": "XLORA"}, "XLORA, which reads every input twice, to mix adapters by it"),
        ({"peft_type": "POLY"}, "POLY, which needs a task with every input"),
        ({"alora_invocation_tokens": [4]}, "activated LoRA, which starts at its invocation tokens only"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            "LoRA with pissa_niter, which draws other weights for its base whenever it is loaded",
        ),
    ],
)
def test_what_depends_on_more_than_layers_is_refused(base, tmp_path, fields, got):
    folder = set_field(make_adapter(base, tmp_path / "dpo", lora()), **fields)
    for load_one in (resolve, load_tokenizer):
        message = refusal(lambda load_one=load_one: load_one(str(folder)))
        assert message == f"{folder}: expected an adapter of the model's layers, got {got}"


def test_all_prompt_kinds_of_peft_are_known():
    from shards.modelfiles.adapter import NOT_FOLLOWED

    kinds = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING
    prompts = {kind.value for kind, config in kinds.items() if issubclass(config, peft.PromptLearningConfig)}
    assert prompts <= set(NOT_FOLLOWED)


def test_weights_that_the_base_has_no_place_for_are_refused(base, tmp_path):
    wide = save(make_llama(0, attention_bias=True, num_hidden_layers=3), tmp_path / "wide")
    folder = set_field(make_adapter(wide, tmp_path / "dpo", lora()), base_model_name_or_path=str(base))
    message = refusal(lambda: load_model(str(folder), dtype="float32"))
    assert "expected a peft adapter for its base, got base_model.model.model.layers.2" in message
    assert message.endswith(", for which the base has no place")


def test_what_this_peft_does_not_know_is_refused(base, tmp_path):
    folder = set_field(make_adapter(base, tmp_path / "dpo", lora()), new_in_peft={"changes": "the result"}, old=None)
    assert refusal(lambda: load_model(str(folder), dtype="float32")) == (
        f"{folder}: expected an adapter of peft {peft.__version__} or older, got new_in_peft, unknown to it"
    )
    set_field(folder, peft_type="NEWER")
    message = refusal(lambda: load_model(str(folder), dtype="float32"))
    assert message == f"{folder}: expected a peft adapter for its base, got one with an unknown 'NEWER'"


def test_an_adapter_of_an_adapter_is_one_of_the_merged_model(base, plain, tmp_path):
    torch.manual_seed(0)
    merged = save(load_model(str(plain), dtype="float32"), tmp_path / "merged")
    folder = make_adapter(merged, tmp_path / "dpo", lora())
    expected = as_peft_runs_it(folder)
    set_field(folder, base_model_name_or_path=str(plain))
    models = load_models({"dpo": resolve(str(folder))}, V, dtype="auto", device="cpu")
    torch.testing.assert_close(as_we_score_it(models["dpo"]), expected, atol=2e-5, rtol=0)


def test_what_changes_an_adapter_changes_its_identity(base, tmp_path):
    folder = make_adapter(base, tmp_path / "dpo", lora())
    before = identity(resolve(str(folder)))
    assert before["peft_version"] == peft.__version__
    record = {"role": "dpo", "direction": "", "options": {}, "training": {}, "data": {"rows_sha256": ""}}
    other_peft, same = before | {"peft_version": "0"}, record | {"reference": before}
    require_same_inputs(record | {"reference": other_peft}, same, "a teacher's folder")
    after = identity(resolve(str(set_field(folder, lora_alpha=3))))
    assert {name for name in before if before[name] != after[name]} == {"config_sha256"}
    moved = identity(resolve(str(set_field(folder, lora_alpha=8, base_model_name_or_path=f"{base}/."))))
    assert moved == before


# ---- adapters whose tokenizer has more tokens than their base


@pytest.fixture(scope="module")
def longer_trio(base, tmp_path_factory):
    """All three are adapters with two tokens more than their base."""
    folder, words = tmp_path_factory.mktemp("longer"), [*WORDS, "<new>", "<newer>"]
    found = {}
    for seed, role in enumerate(("dpo", "reverse", "reference"), start=1):
        found[role] = make_adapter(base, folder / role, lora(), seed=seed, tokens=V + 2)
        make_tokenizer(words).save_pretrained(found[role])
    return found


def test_resized_embeddings_are_loaded_as_peft_loads_them(longer_trio, tmp_path):
    ids = torch.tensor([[1, V, 3, V + 1, 4]])
    folders = {role: resolve(str(folder)) for role, folder in longer_trio.items()}
    models = load_models(folders, V + 2, dtype="auto", device="cpu")
    for role, model in models.items():
        auto = peft.AutoPeftModelForCausalLM.from_pretrained(str(longer_trio[role])).eval()
        merged = load_merged(folders[role], role, dtype="auto", device="cpu")
        student = load_model(str(longer_trio[role]), dtype="float32")
        with torch.no_grad(), model.active():
            expected = auto(input_ids=ids).logits[0]
            assert expected.shape == (5, V + 2) and bool(expected.isfinite().all())
            torch.testing.assert_close(model.logits(model.hidden(ids, torch.ones_like(ids))[0]), expected)
            for whole in (merged, student):
                torch.testing.assert_close(whole(input_ids=ids).logits[0], expected, atol=1e-4, rtol=0)


def test_a_trio_with_resized_embeddings_is_built_checked_sampled_and_trained(longer_trio, tmp_path):
    from student.options import DistillArguments
    from student.train.__main__ import train

    data = write_jsonl(
        tmp_path / "pairs.jsonl",
        [{"prompt": "the <new>", "chosen": " cat <newer>", "rejected": " dog"}, *make_pairs(3)],
    )
    build(build_options(longer_trio, data, tmp_path / "cache", responses="both", **SMALL))
    assert any(V in response.input_ids for response in ShardCache(tmp_path / "cache").read(range(6)))
    assert check(CheckOptions(shards=str(tmp_path / "cache"), device="cpu")).agrees
    rollout(
        RolloutOptions(
            model=str(longer_trio["reference"]),
            data=str(data),
            out=str(tmp_path / "r.jsonl"),
            max_new_tokens=3,
            device="cpu",
        )
    )
    run = DistillArguments(
        shards=[str(tmp_path / "cache")], output_dir=str(tmp_path / "out"), max_steps=1, warmup_steps=0,
        per_device_train_batch_size=2, global_batch_size=4, learning_rate=1e-3, use_cpu=True,
        report_to=[], save_strategy="no",
    )  # fmt: skip
    train(run)
    assert load(tmp_path / "out").get_input_embeddings().weight.shape[0] == V + 2


@pytest.mark.parametrize(
    ("targets", "tokens"),
    [(["q_proj"], None), (["q_proj", "lm_head"], V + 1)],
    ids=["never resized", "peft saves the output layer alone"],
)
def test_new_tokens_without_weights_are_refused(base, tmp_path, targets, tokens):
    folder = make_adapter(base, tmp_path / "dpo", lora(target_modules=targets), tokens=tokens)
    make_tokenizer([*WORDS, "<new>"]).save_pretrained(folder)
    expected = f"expected weights for all {V + 1} tokens of its tokenizer, got none for some of those beyond the {V} of"
    expected += " its base"
    assert refusal(lambda: load_model(str(folder), dtype="float32")) == f"{folder}: {expected}"
    folders = {"dpo": resolve(str(folder)), "reference": resolve(str(base))}
    message = refusal(lambda: load_models(folders, V, dtype="auto", device="cpu"))
    assert message == f"dpo ({folder}): {expected}"


def test_own_logits_are_those_of_the_whole_model(base):
    assert own_logits(load(base), V).shape == (8, V)
