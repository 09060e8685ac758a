"""Every value of a row is read, refused or reported: no column that changes a row's meaning is ignored silently."""

import json

import pytest
from conftest import build_options
from tiny_tokenizers import CHATML, tiny_tokenizer

from precompute.build.build import build
from precompute.data.reader import DataReader
from precompute.tokens.corpus import load_corpus
from precompute.tokens.data_options import DataOptions
from precompute.tokens.prompts import load_prompts
from shards.errors import AlignDistilError, DataError, ModelError

SKY = "What color is the sky?"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


TEXT = {"chosen": " blue", "rejected": " green"}
CHAT = {"chosen": [assistant("blue")], "rejected": [assistant("green")]}


@pytest.fixture
def options(tmp_path):
    def make(*rows, **flags):
        path = tmp_path / "prefs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return DataOptions(data=[str(path)], **flags)

    return make


@pytest.fixture
def read(options):
    """The values for tokenisation, and the notes."""

    def values(*rows, **flags):
        reader = DataReader(options(*rows, **flags).data_sources)
        return [row.values for row in reader], reader.notes()

    return values


@pytest.fixture
def refused(options):
    def refusal(*rows, error=DataError, act=None, **flags):
        with pytest.raises(error) as caught:
            given = options(*rows, **flags).data_sources
            act(given) if act else list(DataReader(given))
        assert isinstance(caught.value, AlignDistilError) and "\n" not in str(caught.value)
        return str(caught.value)

    return refusal


# refused, with what to type


@pytest.mark.parametrize(
    ("row", "lost", "remedy"),
    [
        (
            {"system": "Be kind", "question": SKY, **TEXT},
            "system and question",
            "prompt=question system=system uses them, system= question= leaves them out",
        ),
        ({"question": SKY, **TEXT}, "question", "prompt=question uses it, question= leaves it out"),
        ({"Question": SKY, **CHAT}, "Question", "prompt=Question uses it, Question= leaves it out"),
        (
            {"instruction": "Say", "input": "sky", **TEXT},
            "instruction and input",
            "prompt=instruction+input uses them, instruction= input= leaves them out",
        ),
        ({"prompt": "Say", "input": "sky", **TEXT}, "input", "prompt=prompt+input uses it, input= leaves it out"),
        ({"system": "Be kind", "prompt": SKY, **TEXT}, "system", "system=system uses it, system= leaves it out"),
        (
            {"system": "Be kind", "prompt": [user(SKY)], **CHAT},
            "system",
            "system=system uses it, system= leaves it out",
        ),
        (
            {"system_prompt": "Be kind", "messages": [user(SKY), assistant("blue")]},
            "system_prompt",
            "system=system_prompt uses it, system_prompt= leaves it out",
        ),
        ({"context": "The sky", "prompt": [user(SKY)], **CHAT}, "context", "context= leaves it out"),
        ({"prompt": SKY, "completion": " blue", "history": [["Hi", "Hello"]]}, "history", "history= leaves it out"),
    ],
)
def test_what_belongs_to_the_prompt_is_not_left_out_without_a_word(row, lost, remedy, refused):
    message = refused(row)
    assert message.startswith(
        f"prefs.jsonl line 1: expected a prompt with all that belongs to it, got one without {lost}; --columns {remedy}"
    )


@pytest.mark.parametrize(
    "row",
    [
        {"question": SKY, "prompt": f"Human: {SKY}\n\nAssistant:", **TEXT},
        {"question": "What  color\nis the sky?", "prompt": [user(SKY)], **CHAT},
        {"instruction": SKY, "chosen": [user(SKY), assistant("a")], "rejected": [user(SKY), assistant("b")]},
        {"prompt": SKY, "system": "Be kind", "messages": [system("Be kind"), user(SKY), assistant("a")]},
        {"prompt": SKY, "system": "", "input": None, "history": [], **TEXT},
        {"prompt": [user(SKY)], "conversation": [user(SKY), assistant("blue")], **CHAT},
    ],
)
def test_what_stands_in_the_prompt_already_is_a_label(row, read):
    (values,), notes = read(row)
    assert values
    names = [name for name, value in row.items() if name not in values and value is not None]
    assert notes == [f"columns that are not used: {', '.join(sorted(names))}"]


def test_every_row_is_asked_not_the_first_alone(refused):
    rows = [{"prompt": "a", "input": "", **TEXT}] * 2 + [{"prompt": "a", "input": "b", **TEXT}]
    assert refused(*rows).startswith("prefs.jsonl line 3: ")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": SKY, **TEXT, "images": ["a.png"]}, "column images: expected text alone, got images"),
        ({"prompt": [user(SKY)], **CHAT, "image": "a.png"}, "column image: expected text alone, got image"),
        ({"prompt": SKY, **TEXT, "tools": "[{}]"}, "column tools: expected messages, whose template reads it, got"),
        ({"prompt": SKY, **TEXT, "chat_template_kwargs": {"loud": True}}, "column chat_template_kwargs: expected mes"),
        ({"prompt": SKY, **{n: json.dumps(t) for n, t in CHAT.items()}}, "column chosen: expected text or a list of m"),
        ({"prompt": SKY, **{n: str(t) for n, t in CHAT.items()}}, "column chosen: expected text or a list of messages"),
    ],
)
def test_what_text_cannot_hold_is_refused(row, message, refused):
    assert message in refused(row)


def test_columns_that_change_nothing_are_named(read):
    _, notes = read(
        {"id": 3, "prompt": SKY, "score_chosen": 0.5, "empty": None, **TEXT}, {"prompt": SKY, **TEXT, "z": 1}
    )
    assert notes == ["columns that are not used: id, score_chosen, z"]


def test_a_text_prompt_that_the_messages_do_not_hold_is_counted(read):
    rows = [{"prompt": name, **{n: [user(SKY), *t] for n, t in CHAT.items()}} for name in (SKY, "sky", "other")]
    assert read(*rows)[1] == [
        "columns that are not used: prompt",
        "rows whose column prompt is not in their messages, which count: 1",
    ]


# labels


@pytest.mark.parametrize("name", ["label", "kto_tag"])
@pytest.mark.parametrize("bad", [False, 0, "false", "False", -1])
def test_a_response_labelled_false_is_not_learned_from(name, bad, read, refused):
    rows = [{"prompt": SKY, "completion": " blue", name: True}, {"prompt": SKY, "completion": " green", name: bad}]
    assert refused(*rows) == (
        "prefs.jsonl line 2: expected a response to learn from, got one labelled false; "
        "--on_label_false skip leaves such rows out"
    )
    values, notes = read(*rows, on_label_false="skip")
    assert [row["completion"] for row in values] == [" blue"]
    assert notes == ["rows labelled false, left out: 1"]


def test_other_labels_and_labels_of_pairs_are_unused_columns(read):
    for row in ({"prompt": SKY, "completion": " a", "label": "harmless"}, {"prompt": SKY, **TEXT, "label": False}):
        assert read(row)[1] == ["columns that are not used: label"]


def test_a_rollout_needs_the_prompts_of_bad_responses_too(options):
    data = options({"prompt": SKY, "completion": " green", "label": False}).data_sources
    (prompt,) = load_prompts(data, tokenizer=tiny_tokenizer()).prompts
    assert prompt.prompt == SKY


# --columns


def test_columns_of_other_names_are_those_of_trl(read):
    row = {"question": SKY, "chosen_response": " blue", "rejected_response": " green", "prompt": "old"}
    flags = ["prompt=question", "chosen=chosen_response", "rejected=rejected_response"]
    assert read(row, columns=flags) == ([{"prompt": SKY, **TEXT}], [])
    assert read({"q": SKY, **TEXT}, columns=["completion=chosen", "prompt=q"])[0] == [
        {"prompt": SKY, "completion": " blue"}
    ]


def test_several_columns_are_joined_by_new_lines(read):
    rows = [{"instruction": "Say", "input": word, **TEXT} for word in ("sky", "", None)]
    values, _ = read(*rows, columns=["prompt=instruction+input"])
    assert [row["prompt"] for row in values] == ["Say\nsky", "Say", "Say"]
    assert read({"a+b": "x", **TEXT}, columns=["prompt=a+b"])[0][0]["prompt"] == "x"


def test_a_system_column_makes_text_a_conversation(read):
    rows = [{"system": text, "question": SKY, **TEXT} for text in ("Be kind", "", None)]
    values, _ = read(*rows, columns=["prompt=question", "system=system"])
    said = {"chosen": [assistant(" blue")], "rejected": [assistant(" green")]}
    assert values == [{"prompt": [*first, user(SKY)], **said} for first in ([system("Be kind")], [], [])]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": [user(SKY)], **CHAT}, {"prompt": [system("S"), user(SKY)], **CHAT}),
        ({"messages": [user(SKY), assistant("a")]}, {"messages": [system("S"), user(SKY), assistant("a")]}),
        ({n: [user(SKY), *t] for n, t in CHAT.items()}, {n: [system("S"), user(SKY), *t] for n, t in CHAT.items()}),
        ({"prompt": SKY, "completion": "a"}, {"prompt": [system("S"), user(SKY)], "completion": [assistant("a")]}),
    ],
    ids=["prompt", "messages", "implicit", "completion"],
)
def test_a_system_column_is_the_first_message(row, expected, read):
    assert read({"sys": "S", **row}, columns=["system=sys"])[0] == [expected]


@pytest.mark.parametrize(
    ("row", "flags", "message"),
    [
        (
            {"q": SKY, **TEXT},
            ["prompt=question"],
            "line 1: expected a column question, which --columns prompt= names, got q, chosen, rejected",
        ),
        (
            {"prompt": SKY, **TEXT},
            ["system=sytem"],
            "prefs.jsonl: expected a column sytem, which --columns system=sytem names, found none",
        ),
        ({"system": "S", **TEXT}, ["system=system"], "column system: expected a prompt or messages to put it before"),
        ({"system": 3, "prompt": SKY, **TEXT}, ["system=system"], "column system: expected text, got int"),
        (
            {"system": "S", "prompt": [system("T"), user(SKY)], **CHAT},
            ["system=system"],
            "column system: expected no other system message in prompt, got two",
        ),
        ({"a": SKY, "b": 3, **TEXT}, ["prompt=a+b"], "expected text to join in a and b, got int"),
        (
            {"instruction": "Say", "input": "sky", **TEXT},
            ["prompt=instruction"],
            "without input; --columns prompt=instruction+input uses it, input= leaves it out",
        ),
    ],
)
def test_a_column_that_cannot_be_used_is_refused(row, flags, message, refused):
    assert message in refused(row, columns=flags)


# conversations in other clothes


HUMAN, GPT, OTHER = ({"from": who, "value": text} for who, text in (("human", SKY), ("gpt", "blue"), ("GPT", "green")))
PAIR = {"prompt": [user(SKY)], **CHAT}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"conversations": [HUMAN, GPT]}, {"messages": [user(SKY), assistant("blue")]}),
        ({"conversations": [user(SKY), assistant("blue")]}, {"messages": [user(SKY), assistant("blue")]}),
        ({"messages": [HUMAN, GPT]}, {"messages": [user(SKY), assistant("blue")]}),
        ({"conversations": [HUMAN], "chosen": GPT, "rejected": OTHER}, PAIR),
        ({"conversations": [HUMAN], "chosen": [GPT], "rejected": [OTHER]}, PAIR),
        ({"prompt": [HUMAN], "chosen": [GPT], "rejected": [OTHER]}, PAIR),
        (
            {"conversations": [HUMAN], "chosen": [HUMAN, GPT], "rejected": [HUMAN, OTHER]},
            {"chosen": [user(SKY), assistant("blue")], "rejected": [user(SKY), assistant("green")]},
        ),
        (
            {"prompt": SKY, "chosen": GPT, "rejected": OTHER},
            {"chosen": [user(SKY), assistant("blue")], "rejected": [user(SKY), assistant("green")]},
        ),
    ],
)
def test_sharegpt_is_read(row, expected, read):
    assert read(row)[0] == [expected]


def test_speakers_have_roles(read):
    names = ["system", "human", "function", "observation", "tool", "user", "chatgpt"]
    turns = [{"from": name, "value": name} for name in names]
    (values,), _ = read({"conversations": turns})
    assert [turn["role"] for turn in values["messages"]] == [
        "system",
        "user",
        "tool",
        "tool",
        "tool",
        "user",
        "assistant",
    ]


def test_a_speaker_without_a_role_is_named(refused):
    message = refused({"conversations": [HUMAN, {"from": "function_call", "value": "{}"}]})
    assert message.startswith("prefs.jsonl line 1 column messages message 1: expected from to be one of system, human,")
    assert message.endswith(", got function_call")


def test_a_text_prompt_beside_answers_alone_is_the_users_turn(options):
    tokenizer = tiny_tokenizer(CHATML)
    explicit = load_corpus(options({"prompt": [user(SKY)], **CHAT}).data_sources, tokenizer=tokenizer, responses="both")
    found = load_corpus(options({"prompt": SKY, **CHAT}).data_sources, tokenizer=tokenizer, responses="both")
    assert [r.input_ids.tolist() for r in found.responses] == [r.input_ids.tolist() for r in explicit.responses]
    assert [r.loss_mask.tolist() for r in found.responses] == [r.loss_mask.tolist() for r in explicit.responses]


# the chat template of every row


def test_a_chat_template_is_chosen_by_its_name(options, refused):
    tokenizer = tiny_tokenizer({"plain": CHATML, "loud": CHATML.replace("user", "USER") + "!"})

    def load(data):
        return load_corpus(data, tokenizer=tokenizer)

    assert refused(PAIR, error=ModelError, act=load) == (
        "tokenizer of tiny: expected a chat template, which data as messages needs, got several without a default "
        """(plain, loud); --chat_template_kwargs '{"chat_template": "loud"}' chooses one"""
    )
    assert refused(PAIR, error=ModelError, act=load, chat_template_kwargs='{"chat_template": "lout"}') == (
        "tokenizer of tiny: expected a chat template called lout, got plain, loud"
    )
    plain, loud = (
        load(options(PAIR, chat_template_kwargs=json.dumps({"chat_template": name})).data_sources)
        for name in ("plain", "loud")
    )
    single = load_corpus(options(PAIR).data_sources, tokenizer=tiny_tokenizer(CHATML))
    assert plain.responses[0].input_ids.tolist() == single.responses[0].input_ids.tolist()
    assert plain.data_sha256 != loud.data_sha256 and plain.tokens_sha256 != loud.tokens_sha256


def test_arguments_of_the_template_go_to_every_row_that_has_none_of_its_own(read, refused):
    own = {**PAIR, "chat_template_kwargs": {"loud": False}}
    values, _ = read(PAIR, own, chat_template_kwargs='{"loud": true, "x": 1}')
    assert [row["chat_template_kwargs"] for row in values] == [{"loud": True, "x": 1}, {"loud": False, "x": 1}]
    assert "expected messages, which chat_template_kwargs is for" in refused(
        {"prompt": SKY, **TEXT}, chat_template_kwargs='{"loud": true}'
    )


# what is said


def test_a_second_beginning_of_sequence_is_said_loudly(options):
    rows = [{"prompt": f"{start}{SKY}", **TEXT} for start in ("<s>", "", "<s>")]
    with_bos = tiny_tokenizer(bos=True)
    corpus = load_corpus(options(*rows).data_sources, tokenizer=with_bos, responses="both")
    assert list(corpus.warnings) == [
        "rows that begin with <s> twice: 2; their text has one, and the tokenizer adds another",
    ]
    assert load_prompts(options(*rows).data_sources, tokenizer=with_bos).warnings == list(corpus.warnings)
    assert corpus.responses[0].input_ids[:2].tolist() == [with_bos.bos_token_id] * 2  # as TRL has them
    assert load_corpus(options(*rows).data_sources, tokenizer=tiny_tokenizer(), responses="both").warnings == []


def test_empty_prompts_are_counted(options):
    rows = [{"prompt": "", **TEXT}, {"prompt": SKY, **TEXT}, {"prompt": "", **TEXT}]
    assert load_corpus(options(*rows).data_sources, tokenizer=tiny_tokenizer()).notes == (
        "2 rows of data with an empty prompt",
    )


def test_the_plan_says_it(trio_folders, tmp_path, capsys):
    rows = [{"prompt": "", "chosen": " the cat", "rejected": " a dog", "score": 1}] * 2
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build(build_options(trio_folders, tmp_path / "rows.jsonl", tmp_path / "out", top_k=5, support="fixed"))
    printed = capsys.readouterr().out
    assert "              note  columns that are not used: score\n" in printed
    assert "              note  2 rows of data with an empty prompt\n" in printed
