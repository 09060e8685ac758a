"""`TokenTexts`: the text of every token, from the tokenizer.json that a build leaves in its cache."""

import json
import shutil

import pytest
from conftest import build_options
from fake_cache import make_cache, write_cache
from tiny_tokenizers import CHATML, SPECIAL, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from precompute.build.build import build
from precompute.models.tokenizer_identity import backend_json
from shards import ShardCache
from shards.copy.__main__ import main as copy_main
from shards.errors import CacheDamaged, CacheMissing
from shards.format.writer import write_json
from shards.token_texts import TokenTexts
from shards.verify.__main__ import verify

HOSTILE = 'naïve 👩‍👩‍👧 <script>alert("1")</script> &lt;\u202e\u05d0\n\n  two  spaces<|im_end|>'


def byte_level():
    return tiny_tokenizer(CHATML).backend_tokenizer


def metaspace():
    """As SentencePiece: a word begins with ▁, bytes that are no token of their own are <0x..>."""
    vocabulary = {"<unk>": 0, **{f"<0x{i:02X}>": i + 1 for i in range(256)}}
    vocabulary |= {text: 257 + i for i, text in enumerate(["▁the", "▁sky", "▁", "s", "!"])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(steps)
    return inner


def word_piece():
    """Adds spaces between tokens, and takes some away before punctuation."""
    words = ["[UNK]", "the", "sky", "##s", ".", "do", "n't"]
    inner = Tokenizer(models.WordPiece(vocab={word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.decoder = decoders.WordPiece(cleanup=True)
    return inner


def rewriting():
    """What a token shows depends on the next one: `hel` and `lo` are shown as `bye`."""
    inner = Tokenizer(models.BPE(vocab={"hel": 0, "lo": 1, "m": 2}, merges=[]))
    inner.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("hello", "bye")])
    return inner


CASES = {
    "bytes": (byte_level, lambda inner: inner.encode(HOSTILE).ids),
    "a character cut off": (byte_level, lambda inner: inner.encode("sky 👩").ids[:-1]),
    "bytes that are no character": (byte_level, lambda inner: inner.encode("👩").ids[1:] * 2 + inner.encode("a").ids),
    "sentence pieces": (metaspace, lambda inner: [257, 258, 259, 260, 1 + 0xC3, 1 + 0xA9, 261, 257]),
    "word pieces": (word_piece, lambda inner: [1, 2, 3, 4, 5, 6, 4]),
    "rewriting": (rewriting, lambda inner: [2, 0, 1, 2, 0, 2, 0]),
    "one token": (byte_level, lambda inner: [3]),
    "none": (byte_level, lambda inner: []),
}


@pytest.mark.parametrize("case", CASES)
def test_the_texts_of_all_tokens_are_the_decoding_of_the_row(case):
    make, tokens = CASES[case]
    inner = make()
    ids = tokens(inner)
    pieces = TokenTexts(inner.get_vocab(), inner).pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == inner.decode(ids, skip_special_tokens=False)


def test_a_character_of_several_tokens_is_the_text_of_the_last_one():
    inner = byte_level()
    ids = inner.encode("sky é!").ids
    pieces = TokenTexts(inner.get_vocab(), inner).pieces(ids)
    assert "é" in pieces
    assert pieces[pieces.index("é") - 1] == ""
    assert TokenTexts(inner.get_vocab(), inner).pieces([257])[0] == inner.decode([257])


def test_special_tokens_are_told_from_text():
    inner = byte_level()
    texts = TokenTexts(inner.get_vocab(), inner)
    ids = inner.encode("<|im_start|>sky").ids
    assert [texts.special(i) for i in ids] == [True] + [False] * (len(ids) - 1)
    assert {i for i in range(inner.get_vocab_size()) if texts.special(i)} == {inner.token_to_id(t) for t in SPECIAL}


@pytest.fixture(scope="module")
def built(trio_folders, pairs_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts") / "cache"
    build(build_options(trio_folders, pairs_file, folder, limit=2, top_k=5, max_top_k=12))
    return folder


def test_a_build_leaves_the_tokenizer_in_its_cache(built, trio_folders):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(trio_folders["reference"])
    assert (built / "tokenizer.json").read_text() == backend_json(tokenizer)
    cache = ShardCache(built)
    texts = TokenTexts.of(cache)
    assert texts.note is None
    assert "".join(texts.pieces(cache[0].input_ids)) == tokenizer.decode(cache[0].input_ids)
    assert not list(verify(built))


def test_a_copy_of_a_cache_has_its_tokenizer(built, tmp_path):
    copy_main([str(built), str(tmp_path / "copy")])
    assert (tmp_path / "copy/tokenizer.json").read_bytes() == (built / "tokenizer.json").read_bytes()


def test_a_cache_in_a_store_brings_its_tokenizer(built, bucket):
    here, there = ShardCache(built), ShardCache(bucket.upload(built, "cache"))
    ids = here[0].input_ids
    assert TokenTexts.of(there).pieces(ids) == TokenTexts.of(here).pieces(ids)
    assert not list(verify(there.name))


def test_an_altered_or_missing_tokenizer_is_found(built, tmp_path):
    folder = shutil.copytree(built, tmp_path / "cache")
    content = json.loads((folder / "tokenizer.json").read_text())
    write_json(folder, "tokenizer.json", content | {"decoder": None})
    with pytest.raises(CacheDamaged, match=rf"^{folder}/tokenizer.json: expected sha256 \w+, got \w+$"):
        TokenTexts.of(ShardCache(folder))
    assert [fault.rule for fault in verify(folder)] == [3]
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CacheMissing, match=rf"^{folder}: expected a cache, found no tokenizer.json$"):
        TokenTexts.of(ShardCache(folder))
    assert [fault.rule for fault in verify(folder)] == [3]
    with pytest.raises(CacheMissing, match=r"found no tokenizer.json$"):
        copy_main([str(folder), str(tmp_path / "copy")])


def test_a_cache_without_a_tokenizer_shows_the_vocabularys_own_texts(tmp_path):
    fake = make_cache(tmp_path, pairs=1)
    texts = TokenTexts.of(ShardCache(tmp_path))
    assert texts.note == "no tokenizer.json: tokens as the vocabulary spells them"
    assert texts.pieces([0, 1, 5]) == ["Ġthe", "\n", "word5"]
    assert not texts.special(3)
    assert "tokenizer_sha256" not in fake.plan.to_json()


def test_a_tokenizer_that_cannot_be_read_is_one_line(tmp_path):
    fake = make_cache(tmp_path, pairs=1)
    write_cache(tmp_path, fake.plan, fake.vocabulary, fake.responses, tokenizer="{}")
    with pytest.raises(CacheDamaged, match=rf"^{tmp_path}/tokenizer.json: expected a tokenizer, got "):
        TokenTexts.of(ShardCache(tmp_path))
