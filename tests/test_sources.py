"""Data from users: every kind of file gives the same rows, names are not patterns, several sources act as one."""

import gzip
import json
import shutil
from dataclasses import replace
from fractions import Fraction

import datasets
import pytest
import zstandard
from conftest import build_options

from precompute.build.build import build
from precompute.data.reader import DataReader
from precompute.data.reading import read_rows
from precompute.data.sources import take_rows
from precompute.tokens.data_options import DataOptions
from shards.errors import AlignDistilError, DataError, OptionError
from shards.inspect.__main__ import main as inspect

ROWS = [
    {"prompt": 'What, "then"?', "completion": " blue\r\nsky", "note": "NA"},
    {"prompt": "Wo ist das Meer?", "completion": " 12", "note": ""},
    {"prompt": "Où?", "completion": " é", "note": "2024-01-01"},
]


def as_json(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_table(rows, delimiter=","):
    def line(values):
        return delimiter.join('"' + value.replace('"', '""') + '"' for value in values)

    return "\n".join([delimiter.join(rows[0]), *(line(row.values()) for row in rows)]).encode() + b"\n\n"


def write(folder, name, content):
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_bytes(content)
    return str(folder / name)


def rows_of(*data, **flags):
    reader = DataReader(DataOptions(data=list(map(str, data)), **flags).data_sources)
    return list(reader), reader


def texts(*data, **flags):
    return [row.values["prompt"] for row in rows_of(*data, **flags)[0]]


def refusal(error, act):
    with pytest.raises(error) as caught:
        act()
    assert isinstance(caught.value, AlignDistilError) and "\n" not in str(caught.value)
    return str(caught.value)


def numbered(path, count, word=""):
    return write(
        path.parent, path.name, as_json([{"prompt": f"{word}{i}", "completion": f"{word}{i}"} for i in range(count)])
    )


FILES = {
    "a.jsonl": as_json(ROWS),
    "a.JSONL": as_json(ROWS),
    "a.ndjson": b"\xef\xbb\xbf" + as_json(ROWS).replace(b"\n", b"\r\n"),
    "a.json": json.dumps(ROWS).encode(),
    "a.csv": as_table(ROWS),
    "bom.CSV": b"\xef\xbb\xbf" + as_table(ROWS),
    "a.tsv": as_table(ROWS, "\t"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("compression", ["", ".gz", ".zst", ".GZ"])
def test_every_kind_of_file_holds_the_same_rows(name, compression, tmp_path):
    squeeze = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[compression.lower()]
    path = write(tmp_path, name + compression, squeeze(FILES[name]))
    assert [row for _, row in read_rows(path)] == ROWS


@pytest.mark.parametrize("name", ["a.PARQUET", "a.Arrow"])
def test_tables_are_read_whatever_the_case_of_their_suffix(name, tmp_path):
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "x.parquet")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    source = tmp_path / ("x.parquet" if name == "a.PARQUET" else "saved/data-00000-of-00001.arrow")
    shutil.copy(source, tmp_path / name)  # save_to_disk writes the streaming format
    assert [row for _, row in read_rows(str(tmp_path / name))] == ROWS


def test_a_table_of_text_says_on_which_line_a_row_begins(tmp_path):
    path = write(tmp_path, "a.csv", b'prompt,completion\n\n"a\nb",c\nd,e\n')
    assert [where for where, _ in read_rows(path)] == ["a.csv line 3", "a.csv line 5"]


def test_a_long_field_is_read(tmp_path):
    path = write(tmp_path, "a.csv", b"prompt,completion\na," + b"b" * 200_000 + b"\n")
    assert len(next(read_rows(path))[1]["completion"]) == 200_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b'prompt,completion\n"a"b,c\n', "a.csv line 2: expected a row of fields apart by ',', got "),
        ("a.csv", b'prompt,completion\n"a,b\n', "a.csv line 2: expected a row of fields apart by ',', got unexp"),
        ("a.csv", b"prompt,completion\na\n", "a.csv line 2: expected 2 fields, as the first line has, got 1"),
        ("a.csv", b"prompt,prompt\na,b\n", "a.csv line 1: expected a different name for each column, got prompt, "),
        ("a.csv", b"prompt,completion\n\xe9,b\n", "a.csv line 2: expected text in UTF-8, got other bytes"),
        ("a.csv", b"a;b\nc;d\n", "a.csv line 2: expected the columns of one of "),
        ("a.jsonl.gz", gzip.compress(as_json(ROWS), mtime=0)[:-9], "a.jsonl.gz: expected a whole gzip stream, got "),
        ("a.jsonl.gz", b"no gzip", "a.jsonl.gz: expected a whole gzip stream, got Not a gzipped file"),
        (
            "a.csv.gz",
            gzip.compress(b"a" * 99, mtime=0)[:20] + b"\xff" * 20,
            "a.csv.gz: expected a whole gzip stream, got ",
        ),
        ("a.jsonl.zst", zstandard.compress(as_json(ROWS))[:-9], "a.jsonl.zst: expected a whole zstd stream, got "),
        ("a.parquet", b"", "a.parquet: expected a .parquet file that can be read, got ArrowInvalid"),
        ("a.arrow", b"", "a.arrow: expected a .arrow file that can be read, got "),
        ("a.parquet.gz", b"", "expected a name that ends in .jsonl, "),
        ("a.jsonl", b'{"prompt": "a\xff"}\n', "a.jsonl line 1: expected a JSON object, got text that is not JSON"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_one_line(name, content, message, tmp_path):
    path = write(tmp_path, name, content)
    assert message in refusal(DataError, lambda: rows_of(path))


# names are names


NAMES = ["d[1]", "d*", "d?", "a b", "100%", "a%20b", "x::y", "-d", "hf:"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_no_pattern(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for other in ("d1", "dx", "100", "a b", "x", "y"):  # what the patterns would find
        numbered(tmp_path / other / "train.jsonl", 1, "wrong")
    datasets.Dataset.from_list([{"prompt": "wrong", "completion": "wrong"}]).to_parquet("d1.parquet")
    right = [{"prompt": "right", "completion": "right"}]
    write(tmp_path / name, "train.jsonl", as_json(right))
    datasets.Dataset.from_list(right).to_parquet("plain.parquet")
    datasets.Dataset.from_list(right).save_to_disk("plain")
    shutil.copy("plain.parquet", f"{name}.parquet")
    shutil.copytree("plain", f"saved/{name}")
    shutil.copytree("plain", f"in/{name}/saved")
    for data in (name, f"{name}.parquet", f"saved/{name}", f"in/{name}/saved", str(tmp_path / name)):
        assert texts(data) == ["right"]


def test_all_files_of_a_folder_are_read_whatever_their_names(tmp_path):
    names = ["t0.jsonl", "t[1].jsonl", "t::2.jsonl", "t3.JSONL"]
    for name in names:
        write(tmp_path / "d", name, as_json([{"prompt": name, "completion": "a"}]))
    assert sorted(texts(tmp_path / "d")) == sorted(names)


def test_a_card_says_which_files_of_several_kinds_belong(tmp_path):
    numbered(tmp_path / "d" / "a.jsonl", 1)
    write(tmp_path / "d", "b.csv", b"prompt,completion\na,b\n")
    write(tmp_path / "d", "README.md", b"---\nconfigs:\n- config_name: default\n  data_files: b.csv\n---\n# My data\n")
    assert texts(tmp_path / "d") == ["a"]


@pytest.mark.parametrize("card", [None, b"# My data\n", b"---\nlicense: mit\n---\nconfigs: none\n"])
def test_files_of_several_kinds_in_a_folder_are_refused(tmp_path, card):
    numbered(tmp_path / "d" / "a.jsonl", 1)
    write(tmp_path / "d", "b.csv", b"prompt,completion\na,b\n")
    if card is not None:
        write(tmp_path / "d", "README.md", card)
    assert refusal(DataError, lambda: rows_of(tmp_path / "d")).endswith(
        "d: expected data files of one kind, got .csv, .jsonl; name the files, --data A.jsonl B.csv"
    )


def test_files_of_a_folder_with_other_columns_are_refused_by_their_columns(tmp_path):
    numbered(tmp_path / "d" / "a.jsonl", 1)
    write(tmp_path / "d", "b.jsonl", as_json([{"question": "a", "answer": "b"}]))
    message = refusal(DataError, lambda: rows_of(tmp_path / "d"))
    assert "expected the same columns in all files, got prompt, completion in one and question, answer" in message


# configurations


@pytest.fixture
def configurations(tmp_path):
    names = [f"c{i:02}" for i in range(12)]
    for name in names:
        numbered(tmp_path / "d" / f"{name}.jsonl", 1, name)
    listed = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in names)
    write(tmp_path / "d", "README.md", f"---\nconfigs:\n{listed}---\n".encode())
    return tmp_path / "d"


def test_a_configuration_is_picked_by_name(configurations):
    assert texts(configurations, data_config="c03") == ["c030"]
    names = ", ".join(f"c{i:02}" for i in range(10))
    for given in ("c99", None):
        message = refusal(DataError, lambda given=given: rows_of(configurations, data_config=given))
        assert message.endswith(f"d: expected --data_config, one of {names}, ... (12 in all), got {given or 'none'}")


def test_a_file_has_no_configuration(tmp_path):
    path = numbered(tmp_path / "a.jsonl", 1)
    message = refusal(OptionError, lambda: rows_of(path, data_config="c03"))
    assert message == f"data_config: expected none for {path}, a file, got c03"


# several sources


def test_several_sources_are_one_in_their_order_each_with_its_own_layout_split_and_limit(tmp_path):
    first = numbered(tmp_path / "a.jsonl", 5, "a")
    chat = [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]
    second = write(tmp_path, "b.json", json.dumps([{"messages": chat}] * 3).encode())
    saved = datasets.Dataset.from_list([{"prompt": f"s{i}", "chosen": "x", "rejected": "y"} for i in range(8)])
    datasets.DatasetDict(train=saved, test=saved.select([0, 1, 2, 3])).save_to_disk(tmp_path / "saved")
    rows, reader = rows_of(
        first, second, tmp_path / "saved", split=["train", "train", "test"], data_limit=["2", "all", "50%"]
    )
    assert [row.pair_id for row in rows] == list(range(7))
    assert [row.where for row in rows] == [
        "a.jsonl line 1", "a.jsonl line 2", "b.json row 0", "b.json row 1", "b.json row 2",
        "saved row 1", "saved row 3",
    ]  # fmt: skip
    assert [row.layout.conversational for row in rows] == [False] * 2 + [True] * 3 + [False] * 2
    assert [row.values.get("prompt") for row in rows[5:]] == ["s1", "s3"]
    assert reader.notes() == ["rows of each source: a.jsonl 2, b.json 3, saved 2"]


def test_limit_is_of_all_sources_together(tmp_path):
    paths = [numbered(tmp_path / f"{name}.jsonl", 3, name) for name in "ab"]
    assert texts(*paths, limit=4) == ["a0", "a1", "a2", "b0"]
    assert texts(*paths, limit=4, data_limit="2") == ["a0", "a1", "b0", "b1"]


def test_sources_of_one_name_are_told_apart(tmp_path):
    paths = [numbered(tmp_path / folder / "train.jsonl", 1) for folder in "ab"]
    assert [row.where for row in rows_of(*paths)[0]] == [f"{path} line 1" for path in paths]
    assert [row.where for row in rows_of(paths[0], paths[0])[0]] == [
        f"{paths[0]} train ({number}) line 1" for number in (1, 2)
    ]


def test_a_share_is_an_even_spread(tmp_path):
    assert list(take_rows(iter(range(10)), Fraction(3, 10))) == [3, 6, 9]
    assert list(take_rows(iter(range(1000)), Fraction(1))) == list(range(1000))
    for share in (Fraction(1, 3), Fraction(999, 1000), Fraction(1, 700)):
        assert len(list(take_rows(iter(range(2100)), share))) == int(2100 * share)


def test_a_source_of_several_without_a_row_is_refused(tmp_path):
    paths = [numbered(tmp_path / "a.jsonl", 3), write(tmp_path, "b.jsonl", b"\n")]
    assert refusal(DataError, lambda: rows_of(*paths)) == "b.jsonl: expected a row or more of each source, found none"
    assert texts(*paths, limit=3) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"split": ["train"] * 3}, "split: expected one value, or one for each of 2 sources, got 3"),
        ({"data_limit": ["1", "x"]}, "data_limit: expected a number of rows, a share such as 25%, or all, got 'x'"),
        ({"data_limit": "0"}, "data_limit: expected 1 row or more, or a share over 0% and up to 100%, got '0'"),
        ({"data_limit": "150%"}, "data_limit: expected 1 row or more, or a share over 0% and up to 100%, got '150%'"),
        ({"limit": 0}, "limit: expected 1 or more, got 0"),
        ({"columns": ["question"]}, "columns: expected target=column, such as prompt=question, got 'question'"),
        ({"columns": ["promt=a"]}, "columns: expected one of prompt, chosen, "),
        ({"columns": ["3:prompt=a"]}, "columns: expected a source from 1 to 2 before the colon, got '3:prompt=a'"),
        ({"columns": ["prompt=a", "2:prompt=b"]}, "columns: expected prompt= once for a source, got prompt=b too"),
        ({"chat_template_kwargs": "rag"}, "chat_template_kwargs: expected a JSON object, got 'rag'"),
        ({"chat_template_kwargs": "[]"}, "chat_template_kwargs: expected a JSON object, got '[]'"),
        ({"on_label_false": "keep"}, "on_label_false: expected one of error, skip, got 'keep'"),
    ],
)
def test_a_data_flag_that_cannot_be_is_refused(flags, message):
    assert message in refusal(OptionError, lambda: DataOptions(**{"data": ["a", "b"]} | flags))


def test_two_builds_of_the_same_rows_have_one_identity_whatever_holds_them(trio_folders, tmp_path, capsys):
    pairs = [{"prompt": "the cat", "chosen": f" sat {i}", "rejected": " ran"} for i in range(4)]
    one = write(tmp_path, "one.jsonl", as_json(pairs))
    options = build_options(trio_folders, one, tmp_path / "out", responses="both", top_k=5, support="fixed")
    build(options)
    questions = [{"question": row["prompt"], **{n: row[n] for n in ("chosen", "rejected")}} for row in pairs[3:]]
    parts = [
        write(tmp_path, "a.csv.gz", gzip.compress(as_table(pairs[:3]))),
        write(tmp_path, "b.JSONL", as_json(questions)),
    ]
    capsys.readouterr()
    build(replace(options, data=parts, columns=["2:prompt=question"]))
    assert "already built from the same inputs" in capsys.readouterr().out
    several = tmp_path / "several"
    build(replace(options, data=parts, columns=["2:prompt=question"], out=str(several)))
    inspect([str(several)])
    assert f"{parts[0]},{parts[1]}" in "".join(capsys.readouterr().out.split())  # long lines are wrapped
    for shard in several.glob("part-*.arrow"):
        assert shard.read_bytes() == (tmp_path / "out" / shard.name).read_bytes()
    other = replace(options, data=parts[::-1], columns=["1:prompt=question"])
    assert "data.rows_sha256" in refusal(AlignDistilError, lambda: build(other))
