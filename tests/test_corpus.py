"""Reading and tokenising data: TRL's ids and masks from every kind of source, or one line that says why not."""

import copy
import hashlib
import json
import os
import re
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import zstandard
from tiny_tokenizers import ALTERNATING, CHATML, CHATML_MARKED, THINKING, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from precompute.data.reading import read_rows
from precompute.teachers.pairs import dpo_dataset, whole_pairs
from precompute.tokens.corpus import Corpus, load_corpus
from shards.errors import AlignDistilError, DataError, ModelError, OptionError


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


SPLIT_WORD = {"prompt": "Tell me more about the s", "chosen": "un and the sea", "rejected": " 12"}
TEXT_PAIRS = [
    {"prompt": "What color is the sky?", "chosen": " It is blue.", "rejected": " It is green."},
    {"prompt": "The answer is", "chosen": "n't a number", "rejected": " 12 or 7</s>"},
    SPLIT_WORD,
    {"prompt": "", "chosen": "The sky", "rejected": "The sea"},
]
TEXT_IMPLICIT = [
    {"chosen": "Where is the sun? Zenith.", "rejected": "Where is the sun? Quite high."},
    {"chosen": "The sky is blue", "rejected": "The sky is blue too"},
    {"chosen": "one", "rejected": "two"},
    {"chosen": "The sea", "rejected": "The sun</s>"},
]
CHAT_PAIRS = [
    {"prompt": [user("Where?")], "chosen": [assistant("In the sky.")], "rejected": [assistant("I do not know.")]},
    {
        "prompt": [{"role": "system", "content": "Tell the answer"}, user("What?"), assistant("12"), user("More")],
        "chosen": [assistant("The answer is 12 or 7")],
        "rejected": [assistant("7")],
    },
]
CHAT_IMPLICIT = [{name: row["prompt"] + row[name] for name in ("chosen", "rejected")} for row in CHAT_PAIRS] + [
    {"chosen": [user("What?"), assistant("The sky")], "rejected": [user("What?"), assistant("The sky")]}
]
CHAT_TOOLS = [
    {
        **CHAT_PAIRS[0],
        "tools": [{"type": "function", "function": {"name": "sky", "parameters": {"type": "object"}}}],
        "chat_template_kwargs": {"loud": True},
    },
    {**CHAT_PAIRS[1], "tools": [], "chat_template_kwargs": {"loud": False}},
]
CHAT_TOOLS_JSON = [{**row, "tools": json.dumps(row["tools"])} for row in CHAT_TOOLS]
TEXT_COMPLETIONS = [{"prompt": row["prompt"], "completion": row["rejected"]} for row in TEXT_PAIRS]
CHAT_COMPLETIONS = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in CHAT_PAIRS]
TOOL_USE = [assistant("12"), {"role": "tool", "content": "blue"}, assistant("It is blue")]
MANY_TURNS = [{"prompt": [user("What color?")], "completion": TOOL_USE}]
MESSAGES = [
    {"messages": [user("Where?"), assistant("In the sky."), user("More"), assistant("The sun is in the sky.")]},
    {"messages": [user("What color?"), *TOOL_USE]},
]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_arrow(path, rows):
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


@pytest.fixture
def load(tmp_path):
    """Loads rows from a .jsonl file."""

    def load_rows(rows, tokenizer, **options):
        return load_corpus(write_jsonl(tmp_path / "prefs.jsonl", rows), tokenizer=tokenizer, **options)

    return load_rows


@pytest.fixture
def refusal(tmp_path):
    """The message, checked to be one line, for rows (or the raw text of a .jsonl file) that are refused."""

    def refuse(rows, tokenizer, error=DataError, **options):
        path = tmp_path / "prefs.jsonl"
        path.write_text(rows) if isinstance(rows, str) else write_jsonl(path, rows)
        return message_of(error, str(path), tokenizer=tokenizer, **options)

    return refuse


def message_of(error, data, **options):
    with pytest.raises(error) as caught:
        load_corpus(data, **options)
    assert isinstance(caught.value, AlignDistilError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def as_lists(corpus: Corpus):
    return [(r.sample_id, r.input_ids.tolist(), r.loss_mask.tolist()) for r in corpus.responses]


# TRL's own preparation


@pytest.fixture(scope="module")
def tiny_model():
    config = LlamaConfig(
        vocab_size=400, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, pad_token_id=2
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def dpo(tiny_model, tmp_path_factory):
    """DPOTrainer's ids and masks of rows, as {sample_id: (ids, mask)}, through its preparation and its collator."""
    from trl import DPOConfig, DPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    args = DPOConfig(
        str(tmp_path_factory.mktemp("dpo")), bf16=False, use_cpu=True, gradient_checkpointing=None, report_to="none"
    )
    start = datasets.Dataset.from_list(TEXT_PAIRS)
    models = [copy.deepcopy(tiny_model), copy.deepcopy(tiny_model)]
    trainer = DPOTrainer(*models, args=args, train_dataset=start, processing_class=tiny_tokenizer())

    def prepare(rows, tokenizer, max_length):
        trainer._tokenizer, trainer.args.max_length = tokenizer, max_length
        numbered = [{**row, "row": number} for number, row in enumerate(rows)]
        prepared = trainer._prepare_dataset(datasets.Dataset.from_list(numbered), tokenizer, trainer.args, "train")
        collator = DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id, max_length=max_length)
        found = {}
        for example in prepared:
            batch = {name: value.tolist() for name, value in collator([example]).items()}
            for name, ids, mask, real in zip(
                ("chosen", "rejected"),
                batch["input_ids"],
                batch["completion_mask"],
                batch["attention_mask"],
                strict=True,
            ):
                length = sum(real)
                found[f"{example['row']}/{name}"] = (ids[:length], mask[:length])
        return found

    return prepare


@pytest.fixture(scope="module")
def sft(tiny_model, tmp_path_factory):
    """SFTTrainer's ids and masks of rows, as {sample_id: (ids, mask)}, a token being masked out where its label is."""
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(
        str(tmp_path_factory.mktemp("sft")), bf16=False, use_cpu=True, gradient_checkpointing=None, report_to="none"
    )
    start = datasets.Dataset.from_list(CHAT_COMPLETIONS)
    tokenizer = tiny_tokenizer(CHATML_MARKED)
    trainer = SFTTrainer(copy.deepcopy(tiny_model), args=args, train_dataset=start, processing_class=tokenizer)

    def prepare(rows, tokenizer, max_length, assistant_only_loss=False):
        trainer._tokenizer, trainer.args.max_length = tokenizer, max_length
        trainer.args.assistant_only_loss = assistant_only_loss
        numbered = [{**row, "row": number} for number, row in enumerate(rows)]
        dataset = datasets.Dataset.from_list(numbered)
        prepared = trainer._prepare_dataset(dataset, tokenizer, trainer.args, False, None, "train")
        return {
            f"{row['row']}/completion": (row["input_ids"], [int(label != -100) for label in row["labels"]])
            for row in prepared
        }

    return prepare


def assert_as_trl(corpus, expected):
    """Equal ids and masks, except for token 0, which TRL includes and nothing predicts."""
    found = {r.sample_id: (r.input_ids.tolist(), r.loss_mask.astype(int).tolist()) for r in corpus.responses}
    assert found == {key: (ids, [0, *mask[1:]]) for key, (ids, mask) in expected.items()}


def assert_pairs_as_trl(corpus, expected):
    """The same ids and starts in the data set that precompute.teachers gives to DPOTrainer, in both directions."""
    pairs = whole_pairs(corpus, "rows")
    for swap, kinds in ((False, ("chosen", "rejected")), (True, ("rejected", "chosen"))):
        for pair, row in zip(pairs, dpo_dataset(pairs, swap=swap), strict=True):
            for kind, response in zip(kinds, (row["chosen_ids"], row["rejected_ids"]), strict=True):
                ids, mask = expected[f"{pair.chosen.pair_id}/{kind}"]
                assert (row["prompt_ids"] + response, len(row["prompt_ids"])) == (ids, mask.index(1))
    assert 2 * len(pairs) == len(expected)


PLAIN, WITH_BOS = tiny_tokenizer(), tiny_tokenizer(bos=True)
CHAT, MARKED, THINKS = tiny_tokenizer(CHATML), tiny_tokenizer(CHATML_MARKED, bos=True), tiny_tokenizer(THINKING)


every_cut = pytest.mark.parametrize("cut", ["whole", "behind the shortest prompt", "at the end of the longest prompt"])


def max_length_for(cut, corpus):
    """A length that cuts nothing, one that also drops long prompts, one that leaves the longest prompt no response."""
    starts = [response.response_start for response in corpus.responses]
    assert min(starts) < max(starts)
    lengths = {
        "whole": 2048,
        "behind the shortest prompt": min(starts) + 2,
        "at the end of the longest prompt": max(starts),
    }
    return lengths[cut]


@every_cut
@pytest.mark.parametrize("tokenizer", [PLAIN, WITH_BOS], ids=["no bos", "bos"])
@pytest.mark.parametrize("rows", [TEXT_PAIRS, TEXT_IMPLICIT], ids=["explicit", "implicit"])
def test_text_pairs_tokenise_as_in_dpo_trainer(rows, tokenizer, cut, load, dpo):
    max_length = max_length_for(cut, load(rows, tokenizer))
    corpus = load(rows, tokenizer, responses="both", max_length=max_length)
    expected = dpo(rows, tokenizer, max_length)
    assert_as_trl(corpus, expected)
    assert_pairs_as_trl(corpus, expected)


@every_cut
@pytest.mark.parametrize("tokenizer", [CHAT, MARKED, THINKS], ids=["chatml", "marked", "thinking"])
@pytest.mark.parametrize(
    "rows",
    [CHAT_PAIRS, CHAT_IMPLICIT, CHAT_TOOLS, CHAT_TOOLS_JSON],
    ids=["explicit", "implicit", "tools", "tools as json"],
)
def test_chat_pairs_tokenise_as_in_dpo_trainer(rows, tokenizer, cut, load, dpo):
    max_length = max_length_for(cut, load(rows, tokenizer))
    corpus = load(rows, tokenizer, responses="both", max_length=max_length)
    expected = dpo(rows, tokenizer, max_length)
    assert_as_trl(corpus, expected)
    assert_pairs_as_trl(corpus, expected)


@every_cut
@pytest.mark.parametrize("tokenizer", [PLAIN, WITH_BOS], ids=["no bos", "bos"])
def test_text_completions_tokenise_as_in_sft_trainer(tokenizer, cut, load, sft):
    max_length = max_length_for(cut, load(TEXT_COMPLETIONS, tokenizer))
    corpus = load(TEXT_COMPLETIONS, tokenizer, max_length=max_length)
    assert_as_trl(corpus, sft(TEXT_COMPLETIONS, tokenizer, max_length))


@every_cut
@pytest.mark.parametrize("tokenizer", [CHAT, MARKED, THINKS], ids=["chatml", "marked", "thinking"])
def test_chat_completions_tokenise_as_in_sft_trainer(tokenizer, cut, load, sft):
    max_length = max_length_for(cut, load(CHAT_COMPLETIONS, tokenizer))
    corpus = load(CHAT_COMPLETIONS, tokenizer, max_length=max_length)
    assert_as_trl(corpus, sft(CHAT_COMPLETIONS, tokenizer, max_length))


@pytest.mark.parametrize("max_length", [2048, 40, 26], ids=["whole", "cut at 40", "cut at 26"])
@pytest.mark.parametrize("rows", [MESSAGES, MANY_TURNS], ids=["messages", "completion of many turns"])
def test_every_assistant_turn_trains_where_the_template_tells_them(rows, max_length, load, sft):
    corpus = load(rows, MARKED, max_length=max_length)
    assert_as_trl(corpus, sft(rows, MARKED, max_length, assistant_only_loss=True))


def trained_text(response, tokenizer):
    return tokenizer.decode(response.input_ids[response.loss_mask])


def test_only_the_last_turn_trains_where_the_template_tells_none(load):
    for rows in (MESSAGES[1:], MANY_TURNS):
        (response,) = load(rows, CHAT).responses
        assert trained_text(response, CHAT) == "It is blue<|im_end|>\n"
        assert response.prompt_is_prefix


def test_tool_results_never_train(load):
    (response,) = load(MANY_TURNS, MARKED).responses
    assert trained_text(response, MARKED) == "12<|im_end|>\nIt is blue<|im_end|>\n"
    pair = {"prompt": [user("What?")], "chosen": TOOL_USE, "rejected": [assistant("12"), user("No"), assistant("7")]}
    chosen, rejected = load([pair], MARKED, responses="both").responses
    assert trained_text(chosen, MARKED) == "12<|im_end|>\nIt is blue<|im_end|>\n"
    assert trained_text(rejected, MARKED) == "12<|im_end|>\n7<|im_end|>\n"


def test_a_text_prompt_beside_message_lists_is_a_label(load):
    labelled = [{"prompt": "Where?", "prompt_id": "a1", "score_chosen": 7.0, **row} for row in CHAT_IMPLICIT]
    with_messages = [{**row, "messages": row["chosen"]} for row in labelled]
    expected = load(CHAT_IMPLICIT, CHAT, responses="both")
    for rows in (labelled, with_messages):
        corpus = load(rows, CHAT, responses="both")
        assert as_lists(corpus) == as_lists(expected)
        assert corpus.data_sha256 == expected.data_sha256


def test_the_boundary_is_that_of_the_pair_also_when_one_response_is_asked_for(load):
    own = [
        load([{"prompt": SPLIT_WORD["prompt"], "completion": SPLIT_WORD[name]}], PLAIN).responses[0].response_start
        for name in ("chosen", "rejected")
    ]
    assert own[0] < own[1]
    for name in ("chosen", "rejected"):
        (response,) = load([SPLIT_WORD], PLAIN, responses=name).responses
        assert (response.sample_id, response.response_start) == (f"0/{name}", own[0])
        assert not response.prompt_is_prefix


def test_a_prompt_that_reads_otherwise_alone_is_counted(load):
    corpus = load(CHAT_PAIRS, THINKS, responses="both")
    assert corpus.prompt_not_prefix == 4
    assert not corpus.responses[0].prompt_is_prefix
    assert load(CHAT_PAIRS, CHAT, responses="both").prompt_not_prefix == 0


def test_token_zero_never_trains(load):
    (response,) = load([{"prompt": "", "completion": "The sky"}], PLAIN).responses
    assert response.response_start == 0
    assert not response.loss_mask[0] and response.loss_mask[1:].all()
    (behind_bos,) = load([{"prompt": "", "completion": "The sky"}], WITH_BOS).responses
    assert behind_bos.response_start == 1 and behind_bos.loss_mask[1:].all()


def test_a_response_is_cut_at_max_length_without_an_end_token_and_counted(load):
    rows = [{"prompt": "What?", "completion": " The sky is blue and the sea is blue too"}, TEXT_COMPLETIONS[0]]
    whole = load(rows, PLAIN)
    length = len(whole.responses[1].input_ids)
    corpus = load(rows, PLAIN, max_length=length)
    assert corpus.truncated == 1 and corpus.responses[0].truncated and not corpus.responses[1].truncated
    assert corpus.responses[0].input_ids.tolist() == whole.responses[0].input_ids[:length].tolist()
    assert corpus.responses[0].input_ids[-1] != PLAIN.eos_token_id
    assert len(corpus.responses[0].loss_mask) == length


def test_arrays_have_the_types_that_the_cache_stores(load):
    for response in load(TEXT_PAIRS, PLAIN, responses="both").responses:
        assert response.input_ids.dtype == np.int32 and response.loss_mask.dtype == np.bool_
        assert response.input_ids.shape == response.loss_mask.shape


# what is skipped


def test_a_prompt_is_never_cut(load, refusal):
    rows = [{"prompt": "The sky is blue. " * 9, "chosen": "a", "rejected": "b"}, TEXT_PAIRS[0]]
    corpus = load(rows, PLAIN, responses="both", max_length=20)
    assert [r.sample_id for r in corpus.responses] == ["1/chosen", "1/rejected"]
    assert corpus.skipped == {"overlong": 2, "empty": 0} and corpus.rows_read == 2
    message = refusal(rows, PLAIN, max_length=20, on_overlong="error")
    assert re.fullmatch(
        r"prefs.jsonl line 1 chosen: expected a token to train on within 20 tokens, got the first one at \d+", message
    )


def test_a_response_whose_assistant_turn_lies_behind_the_cut_is_overlong(load, refusal):
    behind = {"prompt": [user("What?")], "completion": [assistant(""), user("The sea " * 9), assistant("blue")]}
    before = {"prompt": [user("What?")], "completion": [assistant("blue")]}
    assert load([behind, before], CHAT, max_length=40).skipped == {"overlong": 1, "empty": 0}
    assert "no response left: 1 rows read, skipped 1 overlong, 0 empty" in refusal([behind], CHAT, max_length=40)


@pytest.mark.parametrize(
    ("row", "tokenizer"),
    [
        ({"prompt": "What?", "chosen": "", "rejected": " 12"}, PLAIN),
        ({"prompt": [user("What?")], "chosen": [], "rejected": [assistant("12")]}, CHAT),
        ({"prompt": [user("What?")], "chosen": [assistant("")], "rejected": [assistant("12")]}, CHAT),
        ({"prompt": [user("What?")], "chosen": [assistant(None)], "rejected": [assistant("12")]}, CHAT),
        ({"chosen": [user("What?"), assistant("")], "rejected": [user("What?"), assistant("12")]}, CHAT),
    ],
    ids=["text", "no message", "no content", "null content", "implicit prompt"],
)
def test_an_empty_response_is_refused_or_skipped_and_the_other_of_its_pair_stays(row, tokenizer, load, refusal):
    assert refusal([row], tokenizer) == "prefs.jsonl line 1 chosen: expected a response, got an empty one"
    corpus = load([row], tokenizer, responses="both", on_empty="skip")
    assert corpus.skipped == {"overlong": 0, "empty": 1}
    full = {**row, "chosen": row["rejected"]}
    expected = load([full], tokenizer, responses="rejected")
    assert as_lists(corpus) == as_lists(expected) == as_lists(load([row], tokenizer, responses="rejected"))


def test_a_last_turn_that_only_calls_a_tool_is_not_empty(load):
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "sky", "arguments": {}}}]}
    (response,) = load([{"messages": [user("What?"), call]}], CHAT).responses
    assert '"sky"' in trained_text(response, CHAT)


def test_limit_counts_rows_read_and_pair_id_is_the_row_number_whatever_was_skipped(load):
    rows = [{"prompt": "What?", "completion": ""}, *TEXT_COMPLETIONS]
    corpus = load(rows, PLAIN, limit=3, on_empty="skip")
    assert [(r.sample_id, r.pair_id, r.chosen) for r in corpus.responses] == [
        ("1/completion", 1, True),
        ("2/completion", 2, True),
    ]
    assert corpus.rows_read == 3
    pairs = load(TEXT_PAIRS, PLAIN, responses="both", limit=1).responses
    assert [(r.sample_id, r.chosen) for r in pairs] == [("0/chosen", True), ("0/rejected", False)]


# every kind of source

TOOL_ROWS = [
    {
        "messages": [
            user("What?"),
            {**assistant("12"), "tool_calls": [{"function": {"name": "sky", "arguments": {"at": 7}}}]},
        ]
    },
    {
        "messages": [
            user("Where?"),
            {**assistant("7"), "tool_calls": [{"function": {"name": "sea", "arguments": {"in": 12}}}]},
        ]
    },
    {"messages": [user("Where?"), assistant("In the sky")]},
]


def write_sources(folder: Path, rows):
    """The same rows in every kind of source."""
    folder.mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    half = lines.index(b"\n") - 3
    (folder / "prefs.jsonl").write_bytes(lines.replace(b"\n", b"\r\n\n"))
    frames = [zstandard.compress(lines[:half]), zstandard.compress(lines[half:])]
    (folder / "prefs.jsonl.zst").write_bytes(b"".join(frames))
    (folder / "list.json").write_text(json.dumps(rows, indent=1))
    (folder / "lines.json").write_bytes(lines)
    write_arrow(folder / "prefs.arrow", rows)
    dataset = datasets.Dataset.from_list(rows)
    dataset.to_parquet(folder / "prefs.parquet")
    dataset.save_to_disk(folder / "saved")
    datasets.DatasetDict(train=dataset, test=dataset.select([0])).save_to_disk(folder / "splits")
    (folder / "hub").mkdir()
    dataset.to_parquet(folder / "hub" / "train.parquet")
    return sorted(str(path) for path in folder.iterdir())


@pytest.mark.parametrize(
    ("rows", "tokenizer"),
    [(TEXT_PAIRS, PLAIN), (CHAT_IMPLICIT, CHAT), (TOOL_ROWS, CHAT)],
    ids=["text", "chat", "tools"],
)
def test_every_kind_of_source_gives_the_same_corpus(rows, tokenizer, tmp_path):
    sources = write_sources(tmp_path / "data", rows)
    assert len(sources) == 9
    corpora = [load_corpus(source, tokenizer=tokenizer) for source in sources]
    assert len({corpus.data_sha256 for corpus in corpora}) == 1
    assert all(as_lists(corpus) == as_lists(corpora[0]) for corpus in corpora)
    assert corpora[0].rows_read == len(rows)


def test_where_counts_lines_of_text_and_rows_of_all_else(tmp_path):
    jsonl = tmp_path / "prefs.jsonl"
    jsonl.write_text('\n{"a": 1}\n   \n{"a": 2}')
    assert list(read_rows(str(jsonl))) == [("prefs.jsonl line 2", {"a": 1}), ("prefs.jsonl line 4", {"a": 2})]
    (tmp_path / "prefs.json").write_text('[{"a": 1}]')
    assert [where for where, _ in read_rows(str(tmp_path / "prefs.json"))] == ["prefs.json row 0"]
    write_arrow(tmp_path / "prefs.arrow", [{"a": 1}, {"a": 2}])
    assert [where for where, _ in read_rows(str(tmp_path / "prefs.arrow"))] == [
        "prefs.arrow row 0",
        "prefs.arrow row 1",
    ]


@pytest.mark.parametrize("name", ["prefs.parquet", "prefs.arrow", "hub"])
def test_a_changed_file_is_read_anew_even_with_its_old_modification_time(name, tmp_path):
    sources = dict(zip(("before", "after"), (TEXT_PAIRS, TEXT_PAIRS[::-1]), strict=True))
    for folder, rows in sources.items():
        write_sources(tmp_path / folder, rows)
    source = tmp_path / "before" / name
    first = load_corpus(str(source), tokenizer=PLAIN)
    file = source / "train.parquet" if source.is_dir() else source
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    file.write_bytes((tmp_path / "after" / file.relative_to(tmp_path / "before")).read_bytes())
    os.utime(file, ns=times)
    second = load_corpus(str(source), tokenizer=PLAIN)
    assert [r.input_ids.tolist() for r in second.responses] == [r.input_ids.tolist() for r in first.responses[::-1]]


def test_a_split_is_picked_by_name(tmp_path):
    write_sources(tmp_path / "data", TEXT_PAIRS)
    splits = str(tmp_path / "data" / "splits")
    assert load_corpus(splits, tokenizer=PLAIN, split="test").rows_read == 1
    assert message_of(DataError, splits, tokenizer=PLAIN, split="eval").endswith(
        "expected split eval, found train, test"
    )
    assert "expected split test, found one" in message_of(
        DataError, str(tmp_path / "data" / "saved"), tokenizer=PLAIN, split="test"
    )
    assert "'train'" in message_of(DataError, str(tmp_path / "data" / "hub"), tokenizer=PLAIN, split="test")
    file = str(tmp_path / "data" / "prefs.jsonl")
    assert message_of(DataError, file, tokenizer=PLAIN, split="test").endswith(
        "expected split train, the only one of a file, got test"
    )


def test_the_data_hash_covers_the_used_columns_of_the_rows_read(load):
    base = load(TEXT_PAIRS, PLAIN).data_sha256
    other_column = [{"id": number, **row} for number, row in enumerate(TEXT_PAIRS)]
    other_order = [dict(reversed(row.items())) for row in TEXT_PAIRS]
    assert load(other_column, PLAIN).data_sha256 == load(other_order, PLAIN).data_sha256 == base
    assert load(TEXT_PAIRS, PLAIN, limit=3).data_sha256 == load(TEXT_PAIRS[:3], PLAIN).data_sha256 != base
    assert load(TEXT_PAIRS[::-1], PLAIN).data_sha256 != base
    assert load(CHAT_PAIRS, CHAT).data_sha256 != load(CHAT_TOOLS, CHAT).data_sha256
    # the law in bytes, so that caches of other versions can be compared
    rows = [{"prompt": "é", "completion": "b"}, {"completion": "d", "prompt": "c"}]
    lines = '{"completion":"b","prompt":"é"}\n{"completion":"d","prompt":"c"}\n'
    assert load(rows, PLAIN).data_sha256 == hashlib.sha256(lines.encode()).hexdigest()


# bad input, by its message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"prompt": "a", "completion": "b"}\n\n{"prompt": ',
            "prefs.jsonl line 3: expected a JSON object, got text that",
        ),
        ('["prompt", "a"]', "prefs.jsonl line 1: expected a JSON object, got list"),
        (
            '{"prompt": "a"}',
            "prefs.jsonl line 1: expected the columns of one of prompt+chosen+rejected, chosen+rejected, ",
        ),
        ('{"prompt": "a", "chosen": "b"}', "prompt+completion, messages, got prompt, chosen"),
        (
            '{"prompt": "a", "completion": "b"}\n{"prompt": "a"}',
            "prefs.jsonl line 2 column completion: expected text, got n",
        ),
        (
            '{"prompt": "a", "completion": "b"}\n{"prompt": [], "completion": "b"}',
            "prefs.jsonl line 2 column prompt: expected text, got list",
        ),
        ('{"prompt": [], "chosen": "a", "rejected": "b"}', "prefs.jsonl line 1 column prompt: expected text, got list"),
        (
            '{"prompt": "a", "completion": "\\ud800"}',
            "prefs.jsonl line 1: expected a JSON object, got text that is not JSON ('utf-8' codec can't encode",
        ),
        ("", "prefs.jsonl: no response left: 0 rows read, skipped 0 overlong, 0 empty"),
        ("[" * 9999, "prefs.jsonl line 1: expected a JSON object, got text that is not JSON"),
        ('{"prompt": "a", "completion": ""}', "prefs.jsonl line 1 completion: expected a response, got an empty one"),
    ],
)
def test_a_row_of_text_that_cannot_be_used_is_refused_in_one_line(text, message, refusal):
    assert message in refusal(text, PLAIN)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [user("What?")]}, "line 1 completion: expected a last turn by assistant, got one by user"),
        ({"messages": [assistant("12")]}, "line 1: expected a prompt of one message or more, got none"),
        ({"messages": "What?"}, "line 1 column messages: expected a list of messages, got str"),
        ({"messages": ["What?"]}, "line 1 column messages message 0: expected an object with a role, got str"),
        (
            {"messages": [{"speaker": "human", "value": "What?"}]},
            "expected an object with a role, got the keys speaker, value",
        ),
        (
            {"messages": [{"role": "user", "content": 7}]},
            "message 0: expected content as text or a list of parts, got int",
        ),
        ({"messages": []}, "line 1 completion: expected a response, got an empty one"),
        (
            {**CHAT_IMPLICIT[0], "rejected": [user("Who?"), assistant("7")]},
            "line 1: expected a prompt of one message or",
        ),
        (
            {**CHAT_PAIRS[0], "tools": "sky"},
            "line 1 column tools: expected a list or a list as JSON, got text that is not",
        ),
        ({**CHAT_PAIRS[0], "tools": {}}, "line 1 column tools: expected a list or a list as JSON, got dict"),
        (
            {**CHAT_PAIRS[0], "chat_template_kwargs": "loud"},
            "line 1 column chat_template_kwargs: expected an object, got str",
        ),
        (
            {**CHAT_PAIRS[0], "chat_template_kwargs": {"truncation": True}},
            "variables of the chat template, got truncation",
        ),
        (
            {"prompt": "What?", "completion": [assistant("12")]},
            "line 1 column prompt: expected a list of messages, got str",
        ),
        (
            {"prompt": [user("What?")], "completion": [assistant("12"), {"role": "tool", "content": "7"}]},
            "line 1 completion: expected a last turn by assistant, got one by tool",
        ),
    ],
)
def test_a_row_of_messages_that_cannot_be_used_is_refused_in_one_line(row, message, refusal):
    assert message in refusal([row], CHAT)


def test_messages_that_the_template_refuses_are_refused_with_its_reason(refusal):
    row = {"prompt": [user("What?"), user("Where?")], "completion": [assistant("12")]}
    assert refusal([row], tiny_tokenizer(ALTERNATING)) == (
        "prefs.jsonl line 1: expected messages that the chat template takes, got TemplateError: roles must alternate"
    )


def test_a_template_whose_markers_hold_no_token_is_refused(refusal):
    template = CHATML + "{% if false %}{% generation %}{% endgeneration %}{% endif %}"
    assert refusal(MESSAGES, tiny_tokenizer(template)) == (
        "prefs.jsonl line 1: expected assistant tokens inside the template's generation block, got none"
    )


def test_a_tokenizer_without_what_the_format_needs_is_refused_in_one_line(refusal):
    no_end = tiny_tokenizer(CHATML, eos=False, name="models/dpo")
    assert refusal(TEXT_PAIRS, no_end, ModelError) == (
        "tokenizer of models/dpo: expected an end-of-sequence token, which data as text needs, got none"
    )
    assert refusal(CHAT_PAIRS, PLAIN, ModelError) == (
        "tokenizer of tiny: expected a chat template, which data as messages needs, got none"
    )


def test_a_conversation_needs_no_end_token(load):
    assert as_lists(load(CHAT_PAIRS, tiny_tokenizer(CHATML, eos=False))) == as_lists(load(CHAT_PAIRS, CHAT))


@pytest.mark.parametrize("responses", ["rejected", "both"])
def test_rejected_responses_cannot_be_had_from_data_without_them(responses, refusal):
    assert refusal(TEXT_COMPLETIONS, PLAIN, responses=responses) == (
        f"prefs.jsonl line 1: expected a column rejected, which responses {responses} asks for, got prompt+completion"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"responses": "all"}, "responses: expected one of chosen, rejected, both, got all"),
        ({"max_length": 1}, "max_length: expected 2 or more, got 1"),
        ({"limit": 0}, "limit: expected 1 or more, got 0"),
        ({"on_empty": "keep"}, "on_empty: expected one of skip, error, got keep"),
    ],
)
def test_an_option_out_of_range_is_refused(options, message, refusal):
    assert refusal(TEXT_PAIRS, PLAIN, OptionError, **options) == message


def test_a_source_that_cannot_be_opened_is_refused_in_one_line(tmp_path, monkeypatch):
    def refused(name):
        return message_of(DataError, str(tmp_path / name), tokenizer=PLAIN)

    assert refused("none.jsonl").endswith(
        "none.jsonl: expected a data file, a folder or a hub name, found nothing there"
    )
    assert refused("none").endswith("none: expected a data file, a folder or a hub name, found nothing there")
    (tmp_path / "prefs.txt").write_text("prompt,completion\na,b\n")
    assert refused("prefs.txt").endswith(
        "expected a name that ends in .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow, or .gz or .zst behind one "
        "of text, got prefs.txt"
    )
    (tmp_path / "prefs.json").write_text("[1")
    assert refused("prefs.json").startswith("prefs.json: expected a list of JSON objects, got text that is not JSON")
    (tmp_path / "prefs.json").write_text('[{"prompt": "a", "completion": "b"}, 7]')
    assert refused("prefs.json") == "prefs.json row 1: expected a JSON object, got int"
    (tmp_path / "empty").mkdir()
    assert refused("empty").startswith("empty: expected data that datasets can read, got ")

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    offline = message_of(DataError, "nobody/no-such-data", tokenizer=PLAIN)
    assert offline.startswith("nobody/no-such-data: expected data that datasets can read, got ConnectionError")


@pytest.mark.parametrize("name", ["prefs.jsonl.zst", "prefs.parquet", "prefs.arrow"])
def test_a_file_cut_short_is_refused_in_one_line(name, tmp_path):
    write_sources(tmp_path / "data", TEXT_PAIRS * 9)
    path = tmp_path / "data" / name
    path.write_bytes(path.read_bytes()[:-40])
    message = message_of(DataError, str(path), tokenizer=PLAIN)
    assert message.startswith(f"{name}: expected ")


def test_a_damaged_zstd_stream_is_refused_in_one_line(tmp_path):
    path = tmp_path / "prefs.jsonl.zst"
    path.write_bytes(b"not zstd at all")
    assert message_of(DataError, str(path), tokenizer=PLAIN).startswith("prefs.jsonl.zst: expected a whole zstd stream")


def test_bytes_in_a_used_column_are_refused(tmp_path):
    content = [{"type": "image", "bytes": b"\xff"}]
    row = {"prompt": [{"role": "user", "content": content}], "completion": [{"role": "assistant", "content": content}]}
    datasets.Dataset.from_list([row]).to_parquet(tmp_path / "prefs.parquet")
    message = message_of(DataError, str(tmp_path / "prefs.parquet"), tokenizer=CHAT)
    assert message.startswith("prefs.parquet row 0: expected text and other values that JSON has, got ")


def test_progress_goes_to_stderr_and_only_when_asked_for(load, capsys, monkeypatch):
    monkeypatch.setattr("shards.progress.draws", lambda: True)
    load(TEXT_PAIRS, PLAIN)
    assert capsys.readouterr() == ("", "")
    load(TEXT_PAIRS, PLAIN, progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "4/4" in err
