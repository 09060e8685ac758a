"""The benchmark of tokenising runs at a small size, and compares the same texts."""

import json

import pytest

from benchmarks.tokenizing.__main__ import main
from benchmarks.tokenizing.layouts import LAYOUTS, make_tokenizer, synthetic_pairs, write_rows
from benchmarks.tokenizing.measure import encode_batch_alone
from benchmarks.tokenizing.options import TokenizingOptions
from benchmarks.tokenizing.report import ratio
from precompute.tokens.corpus import load_corpus
from shards.errors import OptionError


def test_every_number_of_the_page_is_there(tmp_path):
    main(["--rows", "3", "5", "--words", "10", "--repeats", "1", "--built_rows", "2", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(row["layout"], row["rows"]) for row in results["rates"]] == [(name, n) for n in (3, 5) for name in LAYOUTS]
    assert all(ratio(row) > 0 and row["tokens"] > row["texts"] for row in results["rates"])
    assert results["found"][0]["rows"] == 2
    assert "| 2 | " in (tmp_path / "tokenizing.md").read_text()
    assert not list(tmp_path.glob("*-pairs-*"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_tokenizer_alone_is_given_the_texts_of_ours(layout, tmp_path):
    pairs = synthetic_pairs(6, 12, seed=0)
    write_rows(tmp_path / "rows.jsonl", layout, pairs, 9)
    tokenizer = make_tokenizer(pairs)
    _, facts = encode_batch_alone(tmp_path / "rows.jsonl", tokenizer)
    responses = 1 if layout == "messages" else 2
    assert facts["texts"] == 9 * (1 + responses)
    corpus = load_corpus(
        str(tmp_path / "rows.jsonl"), tokenizer=tokenizer, responses="both" if responses == 2 else "chosen"
    )
    prompts = sum(row.response_start for row in corpus.responses) / responses
    assert facts["tokens"] == corpus.facts.tokens + prompts


def test_flags_that_cannot_be_are_refused():
    for flags in ({"rows": [0]}, {"layouts": ["poems"]}, {"tokenizer": "no/such/folder"}):
        with pytest.raises(OptionError):
            TokenizingOptions(**flags)
