"""Tokenising in batches gives the ids of each text alone; a build tokenises once, and only if there is work."""

import json

import numpy as np
import pytest
from conftest import build_options
from tiny import make_llama, make_pairs, make_tokenizer, make_trio, save, write_jsonl
from tiny_tokenizers import ALTERNATING, CHATML, CHATML_MARKED, tiny_tokenizer
from tokenizers import normalizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from precompute.build import inputs
from precompute.build.build import build
from precompute.data import reader
from precompute.data.sources import Data
from precompute.models.tokenizer_identity import tokenizer_identity
from precompute.rollout.__main__ import rollout
from precompute.rollout.options import RolloutOptions
from precompute.tokens import encode
from precompute.tokens.corpus import load_corpus, rows_sha256
from precompute.tokens.encode import Conversation, encode_all
from precompute.tokens.tally import SpreadSample
from shards.errors import AlignDistilError, CacheConflict, DataError, ModelError
from shards.format.encoding.seal import END, sealed, sealed_text


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


TEXTS = ["The sky is blue.", "", " 12", "the sea", "Where? In the sky</s>", "a"]
CHATS = [
    [user("Where?"), assistant("In the sky.")],
    [user("What?")],
    [{"role": "system", "content": "Tell"}, user("More"), assistant("The sun"), user("Why"), assistant("It is")],
]
TOOLS = [{"type": "function", "function": {"name": "sky", "parameters": {"type": "object"}}}]


class OwnCall(PreTrainedTokenizerFast):
    """A tokenizer that reads text differently from its backend."""

    def __call__(self, text, **options):
        mine = [part.upper() for part in text] if isinstance(text, list) else text.upper()
        return super().__call__(mine, **options)


def own_call():
    plain = tiny_tokenizer()
    return OwnCall(tokenizer_object=plain.backend_tokenizer, eos_token="</s>", pad_token="<pad>")


@pytest.fixture(params=[1, 2, 1000], ids=["one by one", "batches of two", "one batch"])
def batches(request, monkeypatch):
    monkeypatch.setattr(encode, "BATCH_TEXTS", request.param)


@pytest.mark.filterwarnings("ignore:This sequence already has")  # ByT5's, of text that ends so
@pytest.mark.parametrize("make", [tiny_tokenizer, lambda: tiny_tokenizer(bos=True), ByT5Tokenizer, own_call])
def test_ids_of_texts_in_batches_are_those_of_each_alone(make, batches):
    tokenizer = make()
    found = encode_all(((i, {"text": text, "twice": text * 2}) for i, text in enumerate(TEXTS)), tokenizer)
    for (i, ids), text in zip(found, TEXTS, strict=True):
        assert ids["text"].ids.tolist() == tokenizer(text)["input_ids"] and TEXTS[i] == text
        assert ids["twice"].ids.tolist() == tokenizer(text * 2)["input_ids"]


@pytest.mark.parametrize("with_mask", [False, True])
def test_conversations_in_batches_are_as_the_template_makes_each_alone(with_mask, batches):
    tokenizer = tiny_tokenizer(CHATML_MARKED, bos=True)
    given = [
        Conversation(
            messages=messages, arguments=arguments, where="row", add_generation_prompt=prompt, with_mask=with_mask
        )
        for messages in CHATS
        for arguments in ({"tools": None}, {"tools": TOOLS, "loud": True})
        for prompt in (False, True)
    ]
    for chat, found in encode_all(((chat, {"chat": chat}) for chat in given), tokenizer):
        expected = tokenizer.apply_chat_template(
            chat.messages, return_dict=True, return_assistant_tokens_mask=with_mask, **chat.options
        )
        assert found["chat"].ids.tolist() == expected["input_ids"]
        assert not with_mask or found["chat"].assistant.tolist() == expected["assistant_masks"]


def test_a_tokenizer_that_was_set_to_cut_cuts_nothing():
    tokenizer = tiny_tokenizer()
    whole = tokenizer(TEXTS)["input_ids"]
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    found = encode_all(((i, {"text": text}) for i, text in enumerate(TEXTS)), tokenizer)
    assert [ids["text"].ids.tolist() for _, ids in found] == whole


def test_a_row_that_the_template_refuses_in_the_middle_of_a_batch_is_named(tmp_path):
    rows = [{"prompt": [user("What?")], "completion": [assistant("12")]} for _ in range(9)]
    rows[5]["prompt"] = [user("What?"), user("Where?")]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(
        DataError, match=r"^rows.jsonl line 6: expected messages that the chat template takes, got Temp"
    ):
        load_corpus(str(data), tokenizer=tiny_tokenizer(ALTERNATING))


def test_several_templates_without_a_default_are_named(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"tool_use": CHATML, "rag": CHATML}
    data = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": [user("What?")], "completion": [assistant("12")]}])
    with pytest.raises(ModelError, match=r"got several without a default \(tool_use, rag\)"):
        load_corpus(str(data), tokenizer=tokenizer)


# ---- what a tokenizer is


def test_a_tokenizer_is_named_by_all_that_its_tokens_depend_on():
    plain = tokenizer_identity(tiny_tokenizer(CHATML))
    assert tokenizer_identity(tiny_tokenizer(CHATML)) == plain
    lower, other_end, split = (tiny_tokenizer(CHATML) for _ in range(3))
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    other_end.eos_token = "<pad>"
    split.split_special_tokens = True
    for changed in (lower, other_end, split, tiny_tokenizer(CHATML, bos=True)):
        found = tokenizer_identity(changed)
        assert [name for name in plain if found[name] != plain[name]] == ["backend_sha256"]


def test_a_tokenizer_that_was_used_is_still_the_same():
    tokenizer = tiny_tokenizer()
    before = tokenizer_identity(tokenizer)
    tokenizer(TEXTS, truncation=True, max_length=2, padding="max_length")
    assert tokenizer_identity(tokenizer) == before


def test_a_tokenizer_with_code_of_its_own_is_named_by_its_files(tmp_path):
    found = []
    for number in (1, 1, 2):
        ByT5Tokenizer().save_pretrained(tmp_path)
        (tmp_path / "tokenization_own.py").write_text(f"NUMBER = {number}\n")
        found.append(tokenizer_identity(ByT5Tokenizer.from_pretrained(tmp_path)))
    assert found[0] == found[1] != found[2]


def test_a_build_goes_on_only_with_the_same_tokenizer(pairs_file, tmp_path):
    folders = make_trio(tmp_path / "trio")
    build(build_options(folders, pairs_file, tmp_path / "cache", limit=2, top_k=4))
    for role, folder in folders.items():  # equal vocabulary, equal template, other tokens
        tokenizer = make_tokenizer()
        tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.save_pretrained(folder)
        assert role in folder.name
    with pytest.raises(CacheConflict, match=r"holds another build, tokenizer\.backend_sha256: expected"):
        build(build_options(folders, pairs_file, tmp_path / "cache", limit=2, top_k=4))


# ---- one pass, and only where there is work


@pytest.fixture
def readings(monkeypatch):
    """The names of the data that are read, in order."""
    found = []

    def read(data, *more, plain=reader.read_rows):
        found.append(data)
        return plain(data, *more)

    monkeypatch.setattr(reader, "read_rows", read)
    return found


@pytest.fixture
def no_tokenizing(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("nothing is to be tokenised")

    return lambda: monkeypatch.setattr(encode, "encode", refuse)


def test_a_build_reads_its_data_once_and_a_finished_one_is_recognised_without_tokens(
    trio_folders, pairs_file, tmp_path, readings, no_tokenizing, capsys
):
    options = build_options(trio_folders, pairs_file, tmp_path / "cache", top_k=4)
    build(options)
    assert "dpo prefers chosen in" in capsys.readouterr().out
    assert readings == [str(pairs_file)], "the directions included"
    no_tokenizing()
    build(options)
    assert "nothing to do" in capsys.readouterr().out and len(readings) == 2


def test_a_finished_build_is_refused_for_other_data_without_tokens(trio_folders, pairs_file, tmp_path, no_tokenizing):
    build(build_options(trio_folders, pairs_file, tmp_path / "cache", top_k=4))
    other = write_jsonl(tmp_path / "other.jsonl", make_pairs(12, seed=1))
    no_tokenizing()
    with pytest.raises(CacheConflict, match=r"data\.rows_sha256: expected"):
        build(build_options(trio_folders, other, tmp_path / "cache", top_k=4))


def test_a_build_that_goes_on_compares_its_tokens(trio_folders, pairs_file, tmp_path):
    options = build_options(trio_folders, pairs_file, tmp_path / "cache", top_k=4)
    build(options)
    (tmp_path / "cache" / "manifest.json").unlink()
    plan = tmp_path / "cache" / "plan.json"
    recorded = json.loads(plan.read_text())["identity"]["data"]["tokens_sha256"].encode()
    plan.write_bytes(sealed(sealed_text(plan.read_bytes()).replace(recorded, b"0" * 64) + END))
    with pytest.raises(CacheConflict, match=r"data.tokens_sha256: expected \"0000"):
        build(options)


def test_data_that_change_between_hash_and_tokens_are_refused(trio_folders, tmp_path, monkeypatch):
    data = write_jsonl(tmp_path / "pairs.jsonl", make_pairs(6))
    options = build_options(trio_folders, data, tmp_path / "cache", top_k=4)
    build(options)
    (tmp_path / "cache" / "manifest.json").unlink()
    plain = inputs.rows_sha256

    def hashed_then_changed(*args, **kwargs):
        found = plain(*args, **kwargs)
        write_jsonl(data, make_pairs(6, seed=1))
        return found

    monkeypatch.setattr(inputs, "rows_sha256", hashed_then_changed)
    with pytest.raises(DataError, match="expected the rows of a minute ago, got others"):
        build(options)


def test_a_finished_rollout_is_recognised_without_tokens(trio_folders, pairs_file, tmp_path, no_tokenizing, capsys):
    given = {"max_new_tokens": 2, "limit": 2, "device": "cpu"}
    options = RolloutOptions(
        model=str(trio_folders["reference"]), data=str(pairs_file), out=str(tmp_path / "s.jsonl"), **given
    )
    rollout(options)
    no_tokenizing()
    rollout(options)
    assert "nothing to do" in capsys.readouterr().out


def test_the_hash_of_the_rows_needs_no_tokenizer(tmp_path):
    data = write_jsonl(tmp_path / "pairs.jsonl", make_pairs(7))
    for limit in (None, 3):
        found = load_corpus(str(data), tokenizer=make_tokenizer(), limit=limit).data_sha256
        assert rows_sha256(Data.of(str(data), limit=limit)) == found


def test_facts_are_those_of_the_rows(tmp_path):
    rows = make_pairs(9)
    rows[3]["prompt"] = ""
    data = write_jsonl(tmp_path / "pairs.jsonl", rows)
    found = load_corpus(str(data), tokenizer=make_tokenizer(), responses="both", max_length=9, sample_pairs=3)
    facts, responses = found.facts, list(found.responses)
    assert list(facts.index.num_positions) == [int(row.loss_mask.sum()) for row in responses]
    assert facts.longest == max(len(row.input_ids) for row in responses) == 9
    assert facts.tokens == sum(len(row.input_ids) for row in responses)
    assert facts.truncated == sum(row.truncated for row in responses) > 0
    assert facts.pairs == 9 and found.empty_prompts == 1
    sampled = {row.sample_id: row for row in found.sampled_pairs}
    assert 3 <= len(sampled) // 2 < 6
    for row in responses:
        if row.sample_id in sampled:
            np.testing.assert_array_equal(sampled[row.sample_id].input_ids, row.input_ids)


@pytest.mark.parametrize("total", [0, 1, 5, 7, 8, 9, 100, 1_001])
def test_a_sample_of_unknown_length_is_spread_evenly(total):
    sample = SpreadSample(4)
    for i in range(total):
        sample.offer(i)
    assert len(sample.kept) == total if total < 4 else 4 <= len(sample.kept) < 8
    assert sample.kept[:1] == [0][:total] and len(set(np.diff(sample.kept))) <= 1
    nothing = SpreadSample(0)
    nothing.offer(1)
    assert nothing.kept == []


# ---- what is said before the work


def test_what_looks_wrong_stands_in_the_plan_before_the_work(trio_folders, tmp_path, capsys, monkeypatch):
    rows = make_pairs(8)
    rows[1]["prompt"] = ""
    for row in rows[2:]:
        row["prompt"] = " ".join(["cat"] * 9)
    data = write_jsonl(tmp_path / "pairs.jsonl", rows)
    models = {role: trio_folders[role] for role in ("dpo", "reference")}

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("precompute.build.work.shard_work.ShardWork.run", stop)
    with pytest.raises(KeyboardInterrupt):
        build(build_options(models, data, tmp_path / "cache", max_length=9, top_k=4))
    out, err = capsys.readouterr()
    assert "warning: max_length: expected room for most responses, got 6 skipped and " in err
    assert "1 row of data with an empty prompt" in out
    assert "the default teacher aligndistil is not served: a teacher with" in out
    assert "needs the model 'reverse'" in out and "train with --teacher adaptive or linear" in out


@pytest.mark.parametrize(
    ("seeds", "names"),
    [
        ({"reference": 0, "dpo": 1, "reverse": 1}, ("dpo", "reverse")),
        ({"reference": 0, "dpo": 0, "reverse": 1}, ("dpo", "reference")),
    ],
)
def test_two_roles_of_equal_weights_are_refused_before_any_pass(seeds, names, pairs_file, tmp_path, no_tokenizing):
    folders = {role: save(make_llama(seed), tmp_path / role) for role, seed in seeds.items()}
    no_tokenizing()
    with pytest.raises(ModelError, match="expected a model of its own for each role") as caught:
        build(build_options(folders, pairs_file, tmp_path / "cache", top_k=4))
    assert all(f"{role} ({folders[role]})" in str(caught.value) for role in names)
    assert not (tmp_path / "cache").exists()


def test_adapters_of_equal_weights_are_refused_unless_their_scale_differs(pairs_file, tmp_path):
    peft = pytest.importorskip("peft")
    base = save(make_llama(0), tmp_path / "base")
    folders = {"reference": base}
    for role, alpha in (("dpo", 4), ("reverse", 4), ("other", 8)):
        config = peft.LoraConfig(r=4, lora_alpha=alpha, target_modules=["q_proj"], task_type="CAUSAL_LM")
        model = make_llama(0)
        model.name_or_path = str(base)
        adapted = peft.get_peft_model(model, config)
        for i, parameter in enumerate(p for p in adapted.parameters() if p.requires_grad):
            parameter.data.fill_(0.1 + i)
        adapted.save_pretrained(tmp_path / role)
        folders[role] = tmp_path / role
    other = folders.pop("other")
    with pytest.raises(AlignDistilError, match="got equal weights for dpo"):
        build(build_options(folders, pairs_file, tmp_path / "cache", limit=2, top_k=4))
    build(build_options(folders | {"reverse": other}, pairs_file, tmp_path / "cache", limit=2, top_k=4))
