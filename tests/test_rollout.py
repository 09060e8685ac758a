"""precompute.rollout: samples have the model's distribution, depend on the seed only, and are read back unchanged."""

import json
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import build_options
from tiny import load, make_llama, make_pairs, make_tokenizer, save, write_jsonl
from tiny_tokenizers import CHATML, tiny_tokenizer

from precompute.build.build import build
from precompute.data.sources import Data
from precompute.rollout.__main__ import main, rollout
from precompute.rollout.completion import completion_text
from precompute.rollout.inputs import end_ids
from precompute.rollout.options import RolloutOptions
from precompute.rollout.sampling import InverseCdf, Request, Sampling, TransformersEngine, until_end
from precompute.tokens.prompts import load_prompts
from shards import ShardCache
from shards.errors import AlignDistilError
from student.evaluate.__main__ import evaluate, parse
from student.options import DistillArguments
from student.train.__main__ import train

V = 18


@pytest.fixture(scope="module")
def model_folder(trio_folders):
    return trio_folders["reference"]


def options(model, data, out, **overrides):
    given = {"max_new_tokens": 6, "batch_size": 4, "device": "cpu"} | overrides
    return RolloutOptions(model=str(model), data=str(data), out=str(out), **given)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def unbroken(model_folder, pairs_file, tmp_path_factory):
    """Two samples of each of twelve prompts, six batches of four."""
    path = tmp_path_factory.mktemp("unbroken") / "samples.jsonl"
    return rollout(options(model_folder, pairs_file, path, num_samples_per_prompt=2))


def sampling(**overrides):
    given = {"max_new_tokens": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": 0}
    return Sampling(**given | {"end_ids": (2,), "vocabulary_size": V} | overrides)


def first_tokens(model, count, **overrides):
    """The first token of `count` samples of one prompt, end tokens as -1."""
    engine = TransformersEngine(model, sampling(**overrides), pad_token_id=0)
    found = engine.sample([Request(prompt=0, sample=i, token_ids=[3, 4, 5]) for i in range(count)])
    return Counter(ids[0] if ids else -1 for ids, _ in found)


def exact(model, temperature=1.0):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[3, 4, 5]])).logits[0, -1, :V]
    probs = (logits.double() / temperature).softmax(-1).numpy()
    return {-1 if token == 2 else token: float(p) for token, p in enumerate(probs)}


def test_a_token_of_probability_zero_is_never_taken():
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0]] * 4)
    uniforms = np.array([[0.0], [0.49], [0.5], [1 - 2**-53]])
    picked = InverseCdf(uniforms, prompt_length=3)(torch.zeros(4, 3, dtype=torch.long), scores)
    assert picked.argmax(-1).tolist() == [1, 1, 3, 3]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_samples_have_the_models_distribution(model_folder, temperature):
    count = 4_000
    found = first_tokens(load(model_folder), count, temperature=temperature)
    for token, p in exact(load(model_folder), temperature).items():
        assert abs(found[token] / count - p) < 5 * (p * (1 - p) / count) ** 0.5 + 1e-9, token


def test_top_k_and_top_p_leave_the_likeliest_tokens(model_folder):
    ranked = sorted(exact(load(model_folder)).items(), key=lambda item: -item[1])
    assert set(first_tokens(load(model_folder), 500, top_k=3)) == {token for token, _ in ranked[:3]}
    mass = ranked[0][1] + ranked[1][1] / 2  # reached with the second
    assert set(first_tokens(load(model_folder), 500, top_p=mass)) == {token for token, _ in ranked[:2]}
    assert set(first_tokens(load(model_folder), 20, temperature=0.0)) == {ranked[0][0]}


def test_tokens_that_only_pad_the_output_layer_are_never_taken():
    wide = make_llama(0, 64)
    assert max(first_tokens(wide, 2_000)) < V
    assert max(first_tokens(wide, 2_000, vocabulary_size=64)) >= V


def test_a_greedy_response_is_the_likeliest_token_after_token(model_folder, pairs_file, tmp_path):
    path = rollout(options(model_folder, pairs_file, tmp_path / "a.jsonl", temperature=0))
    model, tokenizer = load(model_folder), make_tokenizer()
    for row in rows_of(path):
        ids, expected = tokenizer(row["prompt"])["input_ids"], []
        with torch.no_grad():
            while len(expected) < 6 and (not expected or expected[-1] != 2):
                expected.append(int(model(input_ids=torch.tensor([ids + expected])).logits[0, -1].argmax()))
        ended = expected[-1] == 2
        assert (row["truncated"], row["tokens"]) == (not ended, len(expected) - ended)
        assert row["completion"].split() == tokenizer.convert_ids_to_tokens(expected[: row["tokens"]])


def test_each_sample_is_a_function_of_seed_prompt_and_number(model_folder, pairs_file, unbroken, tmp_path):
    rows = rows_of(unbroken)
    assert [(row["id"], row["sample"]) for row in rows] == [(i, j) for i in range(12) for j in range(2)]
    given = {"num_samples_per_prompt": 2}
    again = rollout(options(model_folder, pairs_file, tmp_path / "again.jsonl", **given))
    assert again.read_bytes() == unbroken.read_bytes()
    batches = rollout(options(model_folder, pairs_file, tmp_path / "batches.jsonl", batch_size=7, **given))
    assert batches.read_bytes() == unbroken.read_bytes()
    fewer = rollout(options(model_folder, pairs_file, tmp_path / "fewer.jsonl", limit=5))
    assert rows_of(fewer) == [row for row in rows if row["id"] < 5 and row["sample"] == 0]
    other = rollout(options(model_folder, pairs_file, tmp_path / "other.jsonl", seed=1, **given))
    differing = [a["completion"] != b["completion"] for a, b in zip(rows, rows_of(other), strict=True)]
    assert sum(differing) > 12
    assert sum(rows[i]["completion"] != rows[i + 1]["completion"] for i in range(0, 24, 2)) > 6


@pytest.mark.parametrize("left", [b"", b'{"id": 3, "sam'], ids=["between batches", "in the middle of a line"])
def test_a_killed_rollout_goes_on_to_the_file_of_an_unbroken_one(
    model_folder, pairs_file, unbroken, tmp_path, monkeypatch, left
):
    path, sample, calls = tmp_path / "samples.jsonl", TransformersEngine.sample, []

    def dying(engine, requests):
        calls.append(len(requests))
        if len(calls) in (3, 5):
            raise KeyboardInterrupt
        return sample(engine, requests)

    given = options(model_folder, pairs_file, path, num_samples_per_prompt=2)
    monkeypatch.setattr(TransformersEngine, "sample", dying)
    partial = tmp_path / "samples.jsonl.partial"
    one_more = unbroken.read_bytes().splitlines(keepends=True)[0] if left else b""
    for whole in (8, 12):
        with pytest.raises(KeyboardInterrupt):
            rollout(given)
        assert not path.exists() and len(rows_of(partial)) == whole
        partial.write_bytes(partial.read_bytes() + one_more + left)  # a batch that was not whole

    rollout(given)
    assert len(calls) == 6 + 2  # six batches, and the two in which it died
    assert path.read_bytes() == unbroken.read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"samples.jsonl", "samples.jsonl.identity.json"}


def test_what_is_there_is_recognised_and_nothing_else_is_written_over(
    model_folder, trio_folders, pairs_file, unbroken, tmp_path, capsys
):
    before = unbroken.read_bytes()
    given = {"num_samples_per_prompt": 2}
    rollout(options(model_folder, pairs_file, unbroken, **given))
    assert capsys.readouterr().out == f"{unbroken}: already sampled from the same inputs, nothing to do\n"
    other_data = write_jsonl(tmp_path / "other.jsonl", make_pairs(12, seed=5))
    for field, change in {
        "options.seed": options(model_folder, pairs_file, unbroken, seed=3, **given),
        "options.max_new_tokens": options(model_folder, pairs_file, unbroken, **given | {"max_new_tokens": 5}),
        "model.weights_sha256": options(trio_folders["dpo"], pairs_file, unbroken, **given),
        "data.prompts_sha256": options(model_folder, other_data, unbroken, **given),
    }.items():
        assert refusal(change).startswith(f"{unbroken}: holds another rollout, {field}: expected ")
    begun = tmp_path / "begun.jsonl"
    for suffix in ("partial", "identity.json"):  # by a run that was killed before its first batch
        begun.with_name(f"begun.jsonl.{suffix}").write_text("{}" if suffix == "identity.json" else "")
    rollout(options(model_folder, pairs_file, begun, **given))
    assert begun.read_bytes() == before
    mine = tmp_path / "mine.jsonl"
    for text in ("mine", ""):
        mine.write_text(text)
        assert refusal(options(model_folder, pairs_file, mine)) == (
            f"{mine}: expected mine.jsonl.identity.json beside it, found none; choose another name"
        )
        assert mine.read_text() == text
    assert unbroken.read_bytes() == before


def test_the_build_reads_the_tokens_that_were_sampled(model_folder, trio_folders, unbroken, tmp_path):
    small = {"top_k": 5, "max_top_k": 12, "on_empty": "skip"}
    build(build_options(trio_folders, unbroken, tmp_path / "cache", **small))
    cache = ShardCache(tmp_path / "cache")
    rows, tokenizer = rows_of(unbroken), make_tokenizer()
    assert len(cache) == sum(row["tokens"] > 0 for row in rows) > 12
    assert all(row["same_tokens"] for row in rows)
    for response in cache.read(range(len(cache))):
        row = rows[response.pair_id]
        sampled = response.input_ids[response.loss_mask]
        assert tokenizer.convert_ids_to_tokens(sampled.tolist()) == [*row["completion"].split(), "</s>"]
        assert len(sampled) == row["tokens"] + 1  # the end that was sampled, or that the build puts where it was cut
        assert response.input_ids[: response.response_start].tolist() == tokenizer(row["prompt"])["input_ids"]


def test_rounds_of_rollout_build_and_training_go_where_the_teacher_is(
    model_folder, trio_folders, pairs_file, sparse_cache, tmp_path
):
    """The recipe of docs/recipes.md on tiny models: each round starts from the previous student."""
    student, divergences = model_folder, []
    for number in range(3):
        report = evaluate(parse(["--model", str(student), "--shards", str(sparse_cache.folder), "--gain", "15"]))
        divergences.append(report["models"][0]["quantities"]["divergence_teacher"]["model"]["mean"])
        samples = rollout(options(student, pairs_file, tmp_path / f"round-{number}.jsonl", seed=number))
        build(
            build_options(trio_folders, samples, tmp_path / f"cache-{number}", top_k=5, max_top_k=12, on_empty="skip")
        )
        arguments = {
            "shards": [str(tmp_path / f"cache-{number}")], "model": str(student), "gain": 15.0, "max_steps": 8,
            "output_dir": str(tmp_path / f"student-{number}"), "learning_rate": 3e-3, "warmup_steps": 0,
            "global_batch_size": 4, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": "none",
            "save_strategy": "no", "disable_tqdm": True,
        }  # fmt: skip
        train(DistillArguments(**arguments))
        student = tmp_path / f"student-{number}"
    assert divergences[2] < divergences[1] < divergences[0]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    tokenizer = tiny_tokenizer(CHATML)
    model = make_llama(0, len(tokenizer), eos_token_id=[1, tokenizer.convert_tokens_to_ids("<|im_end|>")])
    return save(model, tmp_path_factory.mktemp("chat") / "model", tokenizer)


def test_a_chat_is_sampled_behind_the_generation_prompt(chat_model, tmp_path):
    user = {"role": "user", "content": "Where is the sun?"}
    tools = [{"type": "function", "function": {"name": "look"}}]
    answer = [{"role": "assistant", "content": "It is in the sky."}]
    data = write_jsonl(
        tmp_path / "chats.jsonl",
        [{"prompt": [user], "completion": answer, "tools": tools}, {"prompt": [user], "completion": answer}],
    )
    path = rollout(options(chat_model, data, tmp_path / "samples.jsonl", num_samples_per_prompt=4, max_new_tokens=12))
    rows, tokenizer = rows_of(path), tiny_tokenizer(CHATML)
    assert [row.get("tools") for row in rows] == [tools] * 4 + [None] * 4
    model = load(chat_model)
    prompts = [tokenizer.apply_chat_template([user], tools=t, add_generation_prompt=True) for t in (tools, None)]
    engine = TransformersEngine(
        model, sampling(max_new_tokens=12, end_ids=(1, 4), vocabulary_size=len(tokenizer)), pad_token_id=2
    )
    for row in rows:
        ids = prompts[row["id"]]["input_ids"]
        ((expected, cut),) = engine.sample([Request(prompt=row["id"], sample=row["sample"], token_ids=ids)])
        assert (row["tokens"], row["truncated"]) == (len(expected), cut)
        assert row["prompt"] == [user]
        ((role, text),) = [(m["role"], m["content"]) for m in row["completion"]]
        assert role == "assistant" and text == completion_text(tokenizer, ids, expected)


def test_same_tokens_says_what_the_build_will_read(chat_model, tmp_path):
    """Random weights give bytes that are not text, which cannot be read back, and words, which can."""
    data = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "Where is the sun?"}] * 12)
    path = rollout(options(chat_model, data, tmp_path / "samples.jsonl", max_new_tokens=3))
    rows, tokenizer = rows_of(path), tiny_tokenizer(CHATML)
    engine = TransformersEngine(
        load(chat_model), sampling(max_new_tokens=3, end_ids=(1, 4), vocabulary_size=len(tokenizer)), pad_token_id=2
    )
    prompt = tokenizer("Where is the sun?")["input_ids"]
    same = []
    for row in rows:
        ((ids, _),) = engine.sample([Request(prompt=row["id"], sample=0, token_ids=prompt)])
        same.append(tokenizer(row["prompt"] + row["completion"])["input_ids"] == prompt + ids)
    assert [row["same_tokens"] for row in rows] == same
    assert 0 < sum(same) < 12


def test_the_prompts_are_those_of_every_layout(tmp_path):
    tokenizer = tiny_tokenizer(CHATML)
    user, yes, no = ({"role": r, "content": c} for r, c in (("user", "a b"), ("assistant", "c"), ("assistant", "d")))
    layouts = {
        "a b": [
            {"prompt": "a b", "chosen": " c", "rejected": " d"},
            {"chosen": "a b c", "rejected": "a b d"},
            {"prompt": "a b", "completion": " c"},
            {"prompt": "a b"},
        ],
        "chat": [
            {"prompt": [user], "chosen": [yes], "rejected": [no]},
            {"prompt": "a b", "chosen": [user, yes], "rejected": [user, no]},
            {"prompt": [user], "completion": [yes]},
            {"messages": [user, yes]},
            {"prompt": [user]},
        ],
    }
    for kind, rows in layouts.items():
        found = []
        for row in rows:
            data = write_jsonl(tmp_path / "data.jsonl", [row])
            (prompt,) = load_prompts(Data.of(str(data)), tokenizer=tokenizer).prompts
            found.append((prompt.prompt, prompt.token_ids))
        assert all(pair == found[0] for pair in found)
        assert found[0][0] == ([user] if kind == "chat" else kind)


def test_what_the_models_folder_says_of_generation_changes_nothing(model_folder, pairs_file, unbroken, tmp_path):
    model = load(model_folder)
    model.generation_config.update(do_sample=True, top_k=1, repetition_penalty=3.0, min_new_tokens=5)
    folder = save(model, tmp_path / "model")
    path = rollout(options(folder, pairs_file, tmp_path / "samples.jsonl", num_samples_per_prompt=2))
    assert rows_of(path) == rows_of(unbroken)


def test_an_adapter_is_sampled_as_it_is_merged(model_folder, pairs_file, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = get_peft_model(load(model_folder), config)
    adapted.save_pretrained(tmp_path / "adapter")
    save(adapted.merge_and_unload(), tmp_path / "merged")
    paths = [rollout(options(tmp_path / n, pairs_file, tmp_path / f"{n}.jsonl")) for n in ("adapter", "merged")]
    assert rows_of(paths[0]) == rows_of(paths[1])
    plain = rollout(options(model_folder, pairs_file, tmp_path / "plain.jsonl"))
    assert rows_of(paths[0]) != rows_of(plain)


def test_a_response_ends_at_the_first_end_token_of_tokenizer_or_model(chat_model, model_folder):
    assert until_end([5, 6, 2, 7, 2], (2, 9)) == ([5, 6], False)
    assert until_end([5, 6], (2, 9)) == ([5, 6], True)
    folders = [SimpleNamespace(name="m", path=folder, base=None) for folder in (chat_model, model_folder)]
    assert end_ids(folders[0], tiny_tokenizer(CHATML)) == (1, 4)
    assert end_ids(folders[1], make_tokenizer()) == (2,)
    assert end_ids(folders[1], tiny_tokenizer(CHATML)) == (1, 2)


# ---- bad input


def refusal(given):
    with pytest.raises(AlignDistilError) as caught:
        rollout(given() if callable(given) else given)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"temperature": -1}, "temperature: expected a finite number >= 0, got -1"),
        ({"top_p": 0}, "top_p: expected a number over 0 and up to 1, got 0"),
        ({"top_k": -1}, "top_k: expected 0 or more, got -1"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected 1 or more, got 0"),
        ({"limit": 0}, "limit: expected 1 or more, got 0"),
        ({"engine": "sglang"}, "engine: expected one of transformers, vllm, got 'sglang'"),
        (
            {"temperature": 0, "num_samples_per_prompt": 2},
            "num_samples_per_prompt: expected 1 at temperature 0, where all are alike, got 2",
        ),
        ({"out": "a.parquet"}, "out: expected a file name that ends in .jsonl, got a.parquet"),
    ],
)
def test_options_out_of_range(overrides, message):
    with pytest.raises(AlignDistilError) as caught:
        RolloutOptions(**{"model": "m", "data": "d", "out": "o.jsonl"} | overrides)
    assert str(caught.value) == message


def test_data_that_has_no_prompt_to_go_on_from(model_folder, tmp_path):
    def of_rows(*rows, **overrides):
        data = write_jsonl(tmp_path / "data.jsonl", rows)
        return refusal(options(model_folder, data, tmp_path / "out" / "a.jsonl", **overrides))

    assert of_rows() == f"{tmp_path / 'data.jsonl'}: expected prompts, found no row"
    assert of_rows({"prompt": ""}) == "data.jsonl line 1: expected a prompt, got an empty one"
    assert of_rows({"text": "a"}).startswith("data.jsonl line 1: expected the columns of one of prompt+chosen+rejected")
    assert of_rows({"prompt": "a"}, {"prompt": 3}) == "data.jsonl line 2 column prompt: expected text, got int"
    long = {"prompt": "the cat"}
    assert of_rows(long, max_new_tokens=127, on_overlong="error") == (
        "data.jsonl line 1: expected a prompt that leaves 127 of 128 tokens (max_new_tokens, max_position_embeddings), "
        "got one of 2"
    )
    assert "no prompt leaves room for 127 tokens out of 128" in of_rows(long, max_new_tokens=127)
    chat = of_rows({"prompt": [{"role": "user", "content": "a"}]})
    assert "expected a chat template, which data as messages needs, got none" in chat
    assert not (tmp_path / "out").exists()


def test_an_overlong_prompt_is_skipped_and_counted(model_folder, tmp_path, capsys):
    rows = [{"prompt": "the cat"}, {"prompt": "the cat sat on the mat"}]
    path = rollout(
        options(model_folder, write_jsonl(tmp_path / "d.jsonl", rows), tmp_path / "a.jsonl", max_new_tokens=125)
    )
    assert [row["id"] for row in rows_of(path)] == [0]
    assert "1 prompts skipped as overlong" in capsys.readouterr().out


def test_a_partial_file_that_is_not_ours(model_folder, pairs_file, unbroken, tmp_path):
    path = tmp_path / "samples.jsonl"
    sidecar = unbroken.with_name(f"{unbroken.name}.identity.json")
    (tmp_path / "samples.jsonl.identity.json").write_bytes(sidecar.read_bytes())
    partial = tmp_path / "samples.jsonl.partial"
    given = options(model_folder, pairs_file, path, num_samples_per_prompt=2)
    partial.write_text("x\n" * 4)
    assert refusal(given) == f"{partial} line 1: expected a sample, got b'x\\n'"
    partial.write_text('{"id": 99, "sample": 0}\n' * 4)
    assert refusal(given).startswith(f"{partial} line 1: expected sample (")
    assert not path.exists()


def test_vllm_that_is_not_installed(model_folder, pairs_file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    message = refusal(options(model_folder, pairs_file, tmp_path / "a.jsonl", engine="vllm"))
    assert message.startswith("engine: expected vllm to be installed (") and message.endswith("pip install vllm")


def test_vllm_is_asked_for_token_ids_with_a_seed_for_each(model_folder, pairs_file, tmp_path, monkeypatch):
    """A stand-in for vLLM, which answers with the prompt's first token and the end token."""
    seen = []

    class Model:
        def __init__(self, **kwargs):
            assert kwargs["model"] == str(model_folder)

        def generate(self, prompts, parameters, use_tqdm):
            seen.extend(parameters)
            answers = [[prompt["prompt_token_ids"][0], 2] for prompt in prompts]
            return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids)]) for ids in answers]

    fake = SimpleNamespace(LLM=Model, SamplingParams=lambda **kwargs: SimpleNamespace(**kwargs))
    monkeypatch.setitem(sys.modules, "vllm", fake)
    path = rollout(
        options(model_folder, pairs_file, tmp_path / "a.jsonl", engine="vllm", num_samples_per_prompt=2, top_k=7)
    )
    rows = rows_of(path)
    assert all(row["completion"].split() == row["prompt"].split()[:1] for row in rows)
    assert not any(row["truncated"] for row in rows)
    assert len({parameter.seed for parameter in seen}) == len(rows) == 24
    assert all((p.top_k, p.max_tokens, p.stop_token_ids) == (7, 6, [2]) for p in seen)


def test_the_command_takes_both_spellings(model_folder, pairs_file, unbroken, tmp_path):
    main(
        [
            *("--model", str(model_folder), "--data", str(pairs_file), "--out", str(tmp_path / "samples.jsonl")),
            *("--num-samples-per-prompt", "2", "--max_new_tokens=6", "--batch-size", "4", "--device", "cpu"),
        ]
    )
    assert (tmp_path / "samples.jsonl").read_bytes() == unbroken.read_bytes()
    assert np.mean([row["tokens"] for row in rows_of(unbroken)]) > 1


def test_text_prompts_of_a_chat_model_are_noted(tmp_path):
    data = Data.of(str(write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "the cat"}])))
    tokenizer = make_tokenizer()
    assert load_prompts(data, tokenizer=tokenizer).notes == []
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    (note,) = load_prompts(data, tokenizer=tokenizer).notes
    assert note == "the data are plain text: the tokenizer's chat template is not applied to them"
