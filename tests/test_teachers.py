"""precompute.teachers: two ordinary model folders, each trained in its direction, complete or absent."""

import json
import shutil
import sys

import pytest
import torch
from conftest import build_options
from safetensors.torch import load_file
from tiny import load, make_llama, make_pairs, make_tokenizer, save, write_jsonl
from transformers import AutoConfig, AutoTokenizer
from trl import DPOTrainer

from precompute.build.build import build
from precompute.teachers import dpo as dpo_module
from precompute.teachers.__main__ import main
from precompute.teachers.pairs import whole_pairs
from precompute.tokens.corpus import load_corpus
from shards.errors import AlignDistilError
from shards.inspect.__main__ import main as inspect_main
from shards.preferences import directions

STEPS, SAVE_STEPS = 8, 3
FLAGS = {
    "learning_rate": 2e-2, "max_steps": STEPS, "per_device_train_batch_size": 8, "save_steps": SAVE_STEPS,
    "logging_steps": 100, "activation_checkpointing": False, "use_cpu": True, "dataloader_pin_memory": False,
    "report_to": "none", "disable_tqdm": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return save(make_llama(0, scale=0.1), tmp_path_factory.mktemp("teachers") / "reference")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("data") / "pairs.jsonl", make_pairs(16))


def teach(reference, data, out, **flags):
    given = {"reference": reference, "data": data, "out": out} | FLAGS | flags
    main([word for name, value in given.items() for word in (f"--{name}", str(value))])


@pytest.fixture(scope="module")
def taught(reference, data, tmp_path_factory):
    """dpo and reverse, trained without a break."""
    out = tmp_path_factory.mktemp("taught") / "models"
    teach(reference, data, out)
    return out


@pytest.fixture
def copy(taught, tmp_path):
    return shutil.copytree(taught, tmp_path / "copy")


def snapshot(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same_weights(one, other):
    found, expected = weights(one), weights(other)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def refusal(action):
    with pytest.raises(AlignDistilError) as caught:
        action()
    message = str(caught.value)
    assert message.strip() and "\n" not in message
    return message


def implicit_margins(folder, reference, data):
    """Reward of chosen minus that of rejected, of each pair, from live models."""
    pairs = whole_pairs(load_corpus(str(data), tokenizer=make_tokenizer(), responses="both"), "")
    models = [load(folder), load(reference)]

    def reward(row):
        ids = torch.tensor(row.input_ids).long()
        with torch.no_grad():
            policy_TV, reference_TV = (model(ids[None]).logits[0, :-1].log_softmax(-1) for model in models)
        gained_T = (policy_TV - reference_TV).gather(-1, ids[1:, None])[:, 0]
        return float(gained_T[torch.tensor(row.loss_mask[1:])].sum())

    return [reward(pair.chosen) - reward(pair.rejected) for pair in pairs]


# ---- what is made


def test_dpo_prefers_the_chosen_responses_and_reverse_the_rejected_ones(taught, reference, data):
    assert sum(margin > 0 for margin in implicit_margins(taught / "dpo", reference, data)) >= 14
    assert sum(margin < 0 for margin in implicit_margins(taught / "reverse", reference, data)) >= 14


def test_each_folder_is_an_ordinary_model_folder_with_the_references_tokenizer(taught, reference):
    assert sorted(path.name for path in taught.iterdir()) == ["dpo", "reverse"]  # no checkpoint is left
    for role in ("dpo", "reverse"):
        assert not list((taught / role).glob("*.bin"))
        mine, theirs = (AutoConfig.from_pretrained(folder).to_dict() for folder in (taught / role, reference))
        assert [name for name in theirs if mine[name] != theirs[name]] == ["_name_or_path"]
        tokenizer = AutoTokenizer.from_pretrained(taught / role)
        assert tokenizer.get_vocab() == make_tokenizer().get_vocab()
        assert ("swapped" in (taught / role / "README.md").read_text()) == (role == "reverse")


def test_a_tokenizer_without_a_pad_token_stays_without_one(data, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    reference = save(make_llama(0), tmp_path / "reference", tokenizer)
    teach(reference, data, tmp_path / "out", max_steps=1)
    assert AutoTokenizer.from_pretrained(tmp_path / "out" / "dpo").pad_token is None


def test_the_record_says_which_way_and_from_what_a_folder_was_trained(taught):
    records = {role: json.loads((taught / role / "made_from.json").read_text()) for role in ("dpo", "reverse")}
    assert records["dpo"]["direction"] == "chosen preferred"
    assert records["reverse"]["direction"] == "chosen and rejected swapped"
    for record in records.values():
        assert record["training"]["learning_rate"] == 2e-2 and record["training"]["global_batch_size"] == 8
        assert record["data"]["pairs"] == 16 and record["versions"].keys() >= {"trl", "transformers", "torch"}
        assert str(taught) not in json.dumps(record)


def test_lora_adapters_are_merged_into_the_weights(reference, data, tmp_path):
    teach(reference, data, tmp_path, use_peft=True, lora_r=4)
    before = weights(reference)
    for role, sign in (("dpo", 1), ("reverse", -1)):
        after = weights(tmp_path / role)
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert before.keys() == after.keys() and moved == {name for name in before if "_proj" in name}
        margins = implicit_margins(tmp_path / role, reference, data)
        assert sum(sign * margin > 0 for margin in margins) >= 14


# ---- again, and after a kill


def stop_at(monkeypatch, step):
    """Ctrl-C at the beginning of a step of the first training."""
    taken = DPOTrainer.training_step
    count = iter(range(1, 1000))

    def training_step(self, *args, **kwargs):
        if next(count) == step:
            raise KeyboardInterrupt
        return taken(self, *args, **kwargs)

    monkeypatch.setattr(DPOTrainer, "training_step", training_step)


def test_a_killed_training_goes_on_from_its_last_checkpoint_to_the_same_weights(
    taught, reference, data, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 8)
        teach(reference, data, tmp_path)
    work = tmp_path / "training" / "dpo"
    assert not (tmp_path / "dpo").exists() and (work / "checkpoint-6" / "made_from.json").is_file()
    (work / "checkpoint-7").mkdir()  # as a kill leaves it while it is written
    (work / "checkpoint-7" / "model.safetensors").write_bytes(b"half")
    capsys.readouterr()
    with monkeypatch.context() as patch:
        stop_at(patch, 2 + STEPS + 1)  # two steps are left of dpo
        teach(reference, data, tmp_path)
    assert "going on from checkpoint-6" in capsys.readouterr().out
    for role in ("dpo", "reverse"):
        assert_same_weights(tmp_path / role, taught / role)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dpo", "reverse"]


def test_a_folder_that_was_half_saved_is_not_there(taught, reference, data, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dpo_module, "write_card", fail)
        teach(reference, data, tmp_path)
    assert not (tmp_path / "dpo").exists()
    assert (tmp_path / "training" / "dpo" / "model" / "model.safetensors").is_file()
    with monkeypatch.context() as patch:
        stop_at(patch, STEPS + 1)  # none is left of dpo
        teach(reference, data, tmp_path)
    assert_same_weights(tmp_path / "dpo", taught / "dpo")


def test_what_is_trained_already_is_left_as_it_is(reference, data, copy, capsys):
    (copy / "training" / "dpo" / "checkpoint-8").mkdir(parents=True)  # of a kill just after the last step
    before = snapshot(copy)
    teach(reference, data, copy, logging_steps=3)
    assert capsys.readouterr().out.count("already trained from the same inputs, nothing to do") == 2
    assert snapshot(copy) == before and not (copy / "training").exists()


def test_a_role_that_is_missing_is_trained_alone(taught, reference, data, copy, monkeypatch):
    shutil.rmtree(copy / "reverse")
    stop_at(monkeypatch, STEPS + 1)
    teach(reference, data, copy)
    assert_same_weights(copy / "reverse", taught / "reverse")


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        ({"learning_rate": 1e-3}, "learning_rate"),
        ({"beta": 0.2}, "beta"),
        ({"limit": 8}, "limit"),
        ({"use_peft": True}, "use_peft"),
    ],
)
@pytest.mark.parametrize("where", ["done", "checkpoint"])
def test_what_was_made_from_other_inputs_is_refused_naming_the_field(where, flags, field, reference, data, copy):
    if where == "checkpoint":
        (copy / "training" / "dpo").mkdir(parents=True)
        (copy / "dpo").rename(copy / "training" / "dpo" / "checkpoint-3")
        shutil.rmtree(copy / "reverse")
    before = snapshot(copy)
    message = refusal(lambda: teach(reference, data, copy, **flags))
    assert f"was made from other inputs, {field}: expected" in message
    assert snapshot(copy) == before


def test_other_data_and_another_reference_are_refused(reference, data, copy, tmp_path):
    other_data = write_jsonl(tmp_path / "other.jsonl", make_pairs(16, seed=1))
    message = refusal(lambda: teach(reference, other_data, copy))
    assert "data: expected the rows of the 16 pairs that it was trained on, got others; give another --out" in message
    other = save(make_llama(1), tmp_path / "other")
    message = refusal(lambda: teach(other, data, copy))
    assert "reference: expected the one that it was trained from, got one with other weights" in message


def test_a_folder_of_other_origin_is_left_alone(reference, data, tmp_path):
    shutil.copytree(reference, tmp_path / "dpo")
    before = snapshot(tmp_path)
    assert "dpo: expected nothing, or a folder with made_from.json" in refusal(lambda: teach(reference, data, tmp_path))
    assert snapshot(tmp_path) == before


# ---- the build


def built(reference, dpo_folder, reverse_folder, data, out, capsys, **options):
    trio = {"dpo": dpo_folder, "reference": reference} | ({"reverse": reverse_folder} if reverse_folder else {})
    capsys.readouterr()
    build(build_options(trio, data, out, top_k=5, max_top_k=12, **options))
    out, err = capsys.readouterr()
    return err + out


def test_the_build_says_how_often_the_models_prefer_what_they_should(taught, reference, data, tmp_path, capsys):
    models = (reference, taught / "dpo", taught / "reverse")
    shares = [sum(m > 0 for m in implicit_margins(taught / "dpo", reference, data)) / 16]
    shares += [sum(m < 0 for m in implicit_margins(taught / "reverse", reference, data)) / 16]
    expected = [
        f"dpo prefers chosen in {shares[0]:.1%} of 16 pairs",
        f"reverse prefers rejected in {shares[1]:.1%} of 16 pairs",
    ]
    for kind in ("both", "chosen", "rejected"):
        text = built(*models, data, tmp_path / kind, capsys, responses=kind)
        assert all(line in text for line in expected) and "warning" not in text
    inspect_main([str(tmp_path / "both")])
    assert all(line in capsys.readouterr().out for line in expected[:1])
    text = built(*models, data, tmp_path / "sample", capsys, sample_rows=4)
    assert "of 4 pairs" in text
    text = built(models[0], models[1], None, data, tmp_path / "no-reverse", capsys)
    assert expected[0] in text and "reverse prefers" not in text


def test_a_sample_of_a_cache_holds_whole_pairs(sparse_cache, monkeypatch):
    assert [found.pairs for found in directions.measure_directions(sparse_cache)] == [12, 12]
    monkeypatch.setattr(directions, "SAMPLE_ROWS", 3)  # of 24 rows, the first and the last among them
    assert [found.pairs for found in directions.measure_directions(sparse_cache)] == [3, 3]


def test_the_build_warns_of_models_that_were_taken_for_each_other(taught, reference, data, tmp_path, capsys):
    models = (reference, taught / "reverse", taught / "dpo")
    text = built(*models, data, tmp_path / "both", capsys, responses="both")
    warnings = [line for line in text.splitlines() if "warning" in line]
    assert len(warnings) == 4
    assert "expected a model trained with chosen preferred, got chosen and rejected swapped" in warnings[0]
    assert "expected a model trained with chosen and rejected swapped, got chosen preferred" in warnings[1]
    assert all("not over a half" in line for line in warnings[2:])
    assert built(*models, data, tmp_path / "chosen", capsys).count("not over a half") == 2


def test_the_build_warns_of_a_model_that_came_from_another_reference(taught, data, tmp_path, capsys):
    other = save(make_llama(1, scale=0.1), tmp_path / "other")
    text = built(other, taught / "dpo", taught / "reverse", data, tmp_path / "cache", capsys)
    assert text.count("was trained from another model than this reference") == 2


def test_models_without_a_record_of_their_training_are_not_warned_of(trio_folders, pairs_file, tmp_path, capsys):
    (tmp_path / "dpo").mkdir()
    shutil.copytree(trio_folders["dpo"], tmp_path / "dpo", dirs_exist_ok=True)
    (tmp_path / "dpo" / "made_from.json").write_text("[1]")  # another software's
    text = built(
        trio_folders["reference"], tmp_path / "dpo", trio_folders["reverse"], pairs_file, tmp_path / "c", capsys
    )
    assert "expected a model trained" not in text and "another model than" not in text


def test_of_data_without_pairs_nothing_is_said(taught, reference, tmp_path, capsys):
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in make_pairs(4)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert "prefers" not in built(reference, taught / "dpo", taught / "reverse", data, tmp_path / "cache", capsys)


# ---- bad input


def test_without_trl_the_extra_is_named(reference, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "precompute.teachers.arguments")
    message = refusal(lambda: teach(reference, data, tmp_path))
    assert message == "teachers: expected trl to be installed; install aligndistil-offline[teachers]"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"output_dir": "x"}, "output_dir: expected None here (it follows from --out), got 'x'"),
        ({"eval_strategy": "steps"}, "eval_strategy: expected 'no' here"),
        ({"resume_from_checkpoint": "true"}, "resume_from_checkpoint: expected None here"),
        ({"lora_r": 0}, "lora_r: expected 1 or more, got 0"),
        ({"limit": 0}, "limit: expected 1 or more, got 0"),
        ({"max_length": 1}, "max_length: expected 2 or more, got 1"),
        ({"loss_type": "exo_pair"}, "DPOTrainer: Label smoothing must be greater than 0.0"),
        ({"bf16": True, "fp16": True}, "DPOConfig: "),
        ({"max_length": 2}, "no response left"),
        ({"reference": "./nowhere"}, "./nowhere: expected a model folder, found none"),
        ({"nonsense": 1}, "unrecognized arguments"),
        ({"use_peft": True, "lora_target_modules": "nothing"}, "DPOTrainer: "),
    ],
)
def test_a_bad_option_is_one_line_and_leaves_nothing(flags, expected, reference, data, tmp_path):
    out = tmp_path / "out"
    assert expected in refusal(lambda: teach(**{"reference": reference, "data": data, "out": out} | flags))
    assert not any(path.is_file() for path in out.rglob("*"))


def test_data_without_rejected_responses_are_refused(reference, tmp_path):
    rows = [{"prompt": "the cat", "completion": " sat"}]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    message = refusal(lambda: teach(reference, data, tmp_path / "out"))
    assert message.startswith("rows.jsonl line 1: expected a column rejected")


def test_a_pair_with_an_empty_response_is_left_out_whole(reference, tmp_path):
    rows = make_pairs(4)
    rows[1]["rejected"] = ""
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert "line 2 rejected: expected a response" in refusal(lambda: teach(reference, data, tmp_path / "out"))
    corpus = load_corpus(str(data), tokenizer=make_tokenizer(), responses="both", on_empty="skip")
    assert [pair.chosen.pair_id for pair in whole_pairs(corpus, "")] == [0, 2, 3]
    rows = [row | {"rejected": ""} for row in rows]
    data = write_jsonl(tmp_path / "none.jsonl", rows)
    message = refusal(lambda: teach(reference, data, tmp_path / "out", on_empty="skip"))
    assert "expected a row with both responses, found none among 4" in message
