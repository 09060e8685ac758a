"""`python -m shards.inspect DIR --html FILE`: which rows the page has, in how many bytes, and what is embedded."""

import base64
import json
import re
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from fake_cache import make_cache, write_cache
from tiny_tokenizers import tiny_tokenizer

from shards import ShardCache, TeacherSpec
from shards.errors import OptionError
from shards.format import schema
from shards.format.encoding import compact
from shards.format.schema import Pair
from shards.inspect import __main__ as inspect
from shards.inspect.choose import Choice, groups, parse_rows
from shards.inspect.packing import WIDTHS, pack, pack_row
from shards.token_texts import TokenTexts


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("page") / "cache", pairs=20, values="compact")


def embedded(file):
    """(the page's data, name -> inflated bytes) of a page."""
    html = file.read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', html)[1])
    found = re.findall(r'<script type="application/octet-stream" id="([\w-]+)">(.*?)</script>', html)
    return data, {name: zlib.decompress(base64.b64decode(text)) for name, text in found}


def unpacked(raw):
    """Inverse of `pack`, after the compression."""
    (size,) = struct.unpack_from("<I", raw)
    found, at = {}, 4 + size
    for name, kind, length in json.loads(raw[4:at]):
        planes = np.frombuffer(raw, np.uint8, WIDTHS[kind] * length, at).reshape(WIDTHS[kind], length).astype(np.uint32)
        whole = sum((plane << np.uint32(8 * i) for i, plane in enumerate(planes)), np.zeros(length, np.uint32))
        found[name] = whole.view(np.float32) if kind == "f32" else whole.astype(np.int8) if kind == "i8" else whole
        at += WIDTHS[kind] * length
    return found


def write(cache, file, *flags):
    inspect.main([str(cache), "--html", str(file), *map(str, flags)])
    return embedded(file)


# ---- which rows


@pytest.mark.parametrize(("text", "rows"), [("3", [3]), ("3,17, 4-6", [3, 17, 4, 5, 6]), ("2-2,2", [2])])
def test_rows_are_numbers_and_ranges(text, rows):
    assert parse_rows(text) == rows


@pytest.mark.parametrize("text", ["", "a", "3-", "-3", "5-2", "1;2", "1.5"])
def test_other_texts_are_no_rows(text):
    with pytest.raises(OptionError, match=r"^rows: expected row numbers such as 3,17,40-59, got"):
        parse_rows(text)


def test_a_sample_has_whole_pairs_in_the_order_of_the_cache(fake):
    cache = ShardCache(fake.folder)
    found = groups(cache, Choice(sample=10), 1e9)
    assert all(len(group) == 2 for group in found) and len(found) == 5
    assert found == sorted(found) and found[0] == [0, 1] and found[-1] == [38, 39]
    for group in found:
        assert len({response.pair_id for response in cache.read(group)}) == 1


def test_a_seed_draws_the_same_rows_again_and_another_one_others(fake):
    cache = ShardCache(fake.folder)
    first, again, other = (groups(cache, Choice(sample=10, seed=seed), 1e9) for seed in (1, 1, 2))
    assert first == again != other
    assert sum(map(len, first)) <= 10


def test_rows_that_are_asked_for_come_alone_and_in_their_order(fake, tmp_path):
    data, blobs = write(fake.folder, tmp_path / "page.html", "--rows", "7,2-3")
    assert [row["id"] for row in data["rows"]] == [7, 2, 3]
    assert set(blobs) == {"row-7", "row-2", "row-3", "tokens"}
    data, _ = write(fake.folder, tmp_path / "page.html", "--row", "-1")
    assert [row["id"] for row in data["rows"]] == [38, 39], "with its partner"


@pytest.mark.parametrize("flags", [("--rows", "40"), ("--row", "40"), ("--sample", "0"), ("--page_mb", "0")])
def test_rows_and_sizes_out_of_range_are_refused(fake, tmp_path, flags):
    with pytest.raises(OptionError, match=rf"^{flags[0].strip('-')}: expected"):
        write(fake.folder, tmp_path / "page.html", *flags)
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(("spare_kb", "flags"), [(8, ()), (30, ()), (20, ("--rows", "0-39"))])
def test_a_page_keeps_to_its_budget_and_says_what_is_left_out(fake, tmp_path, capsys, spare_kb, flags):
    least = len((write(fake.folder, tmp_path / "page.html", "--rows", "0"), (tmp_path / "page.html").read_bytes())[1])
    budget = (least + 1000 * spare_kb) / 1e6
    capsys.readouterr()
    data, _ = write(fake.folder, tmp_path / "page.html", "--page_mb", budget, *flags)
    size = (tmp_path / "page.html").stat().st_size
    assert budget * 1e6 - 1000 * spare_kb < size <= budget * 1e6
    assert 1 < len(data["rows"]) < 40
    text = f"with {len(data['rows'])} of 40 responses; 40 do not fit, --page_mb allows more"
    assert text in capsys.readouterr().out


def test_one_pair_is_there_whatever_the_budget(fake, tmp_path):
    data, _ = write(fake.folder, tmp_path / "page.html", "--page_mb", "0.001")
    assert [row["id"] for row in data["rows"]] == [0, 1]


# ---- what is embedded


def test_any_array_comes_back_from_its_planes():
    arrays = {
        "a": ("u24", np.array([0, 255, 256, (1 << 24) - 1])),
        "b": ("f32", np.array([[0.1, -np.inf], [3e38, -1e-38]], np.float32)),
        "c": ("i8", np.array([-3, 0, 127])),
        "d": ("u8", np.array([True, False])),
        "e": ("f32", np.array([], np.float32)),
    }
    found = unpacked(zlib.decompress(pack(arrays)))
    assert {name: values.tolist() for name, values in found.items()} == {
        name: np.ravel(values).tolist() for name, (_, values) in arrays.items()
    }


@pytest.mark.parametrize("values", ["compact", "float32"])
def test_a_row_is_embedded_as_it_is_stored(values, tmp_path):
    """The codes of log-probs with their last bits give the float32 numbers that Python reads."""
    make_cache(tmp_path, pairs=3, values=values, response_tokens=30)
    cache = ShardCache(tmp_path)
    for response in cache.read(range(6)):
        scores = response.scores
        found = unpacked(zlib.decompress(pack_row(response, ["x"] * len(response.input_ids), cache.plan)))
        assert np.array_equal(found["input_ids"], response.input_ids)
        assert np.array_equal(found["loss_mask"], response.loss_mask)
        assert np.array_equal(found["support_count"], scores.support_count)
        assert np.array_equal(compact.from_gaps(found["support_gaps"]), scores.support_ids)
        for role in cache.plan.roles:
            assert np.array_equal(found[schema.next_logprob_column(role)], scores.next_logprob[role])
            assert np.array_equal(found[schema.tail_logprob_column(role)], scores.tail_logprob[role])
        for pair, partition_NI in scores.tail_logpartition.items():
            assert np.array_equal(found[schema.tail_logpartition_column(pair)], partition_NI.ravel())
        if values == "float32":
            assert all(np.array_equal(found[schema.logprobs_column(r)], v) for r, v in scores.logprobs.items())
            continue
        codes = compact.from_differences({r: found[schema.codes_column(r)] for r in cache.plan.roles})
        unit_M = np.repeat(compact.units(scores.l1_distance["reverse"]), scores.support_count)
        for role, logprobs_M in scores.logprobs.items():
            near_M = compact.from_codes(codes[role], unit_M)
            assert np.array_equal(near_M, logprobs_M)
            assert np.abs(found[f"{role}_ulps"]).max() <= 4


def test_lists_have_the_sums_that_rewards_are_made_of(fake, tmp_path):
    data, _ = write(fake.folder, tmp_path / "page.html", "--rows", "5")
    (row,) = data["rows"]
    response = ShardCache(fake.folder)[5]
    following = response.scores.next_logprob
    for negative in ("reverse", "reference"):
        expected = np.sum(following["dpo"].astype(float) - following[negative])
        assert row["sums"][negative] == pytest.approx(expected, abs=1e-9)
        assert row["largest_distance"][negative] == response.scores.l1_distance[negative].max()
    assert (row["pair"], row["chosen"], row["name"]) == (response.pair_id, response.chosen, response.sample_id)
    assert row["positions"] == response.scores.num_positions


def test_texts_are_those_of_the_tokenizer_cut_by_units_of_javascript(tmp_path):
    tokenizer = tiny_tokenizer().backend_tokenizer
    fake = make_cache(tmp_path / "fake", pairs=1, vocabulary_size=tokenizer.get_vocab_size(), top_k=4)
    text = "sky 👩‍👧 é <b>&amp;\n"
    response = fake.responses[0]
    ids = np.array(tokenizer.encode(text).ids[: len(response.input_ids)], np.int32)
    response = replace(response, input_ids=np.resize(ids, len(response.input_ids)))
    (tmp_path / "c").mkdir()
    write_cache(tmp_path / "c", fake.plan, tokenizer.get_vocab(), [response, fake.responses[1]], tokenizer.to_str())
    data, blobs = write(tmp_path / "c", tmp_path / "page.html")
    row, arrays = data["rows"][0], unpacked(blobs["row-0"])
    whole = row["prompt"] + row["text"]
    assert whole == tokenizer.decode(response.input_ids.tolist(), skip_special_tokens=False)
    assert arrays["text_units"].sum() == len(whole.encode("utf-16-le")) // 2
    tokens, texts = json.loads(blobs["tokens"]), TokenTexts(tokenizer.get_vocab(), tokenizer)
    assert tokens[str(int(response.input_ids[0]))] == texts.text(response.input_ids[0])


# ---- the command


def test_the_page_says_what_the_terminal_says(fake, tmp_path, capsys):
    data, _ = write(fake.folder, tmp_path / "page.html", "--gain", "5")
    assert re.search(r"page.html: \d\.\d MB with 40 of 40 responses$", capsys.readouterr().out.strip())
    assert TeacherSpec(**data["teacher"]) == TeacherSpec(gain=5.0)
    assert str(TeacherSpec(gain=5.0)) in data["about"]["verdict"]["measured"]
    assert fake.plan.sha256[:12] in data["about"]["identity"]["format"][0]
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_page_is_written_whole_or_not_at_all(fake, tmp_path, monkeypatch):
    file = tmp_path / "page.html"
    file.write_text("the old one")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shards.format.writer.flush", fail)
    with pytest.raises(OptionError, match="No space left"):
        inspect.main([str(fake.folder), "--html", str(file)])
    assert file.read_text() == "the old one"


def test_a_page_never_takes_the_place_of_a_shard_or_a_folder(fake, tmp_path):
    before = (fake.folder / "manifest.json").read_bytes()
    (tmp_path / "folder.html").mkdir()
    for file in (fake.folder / "manifest.json", tmp_path / "folder.html", tmp_path / "missing" / "page.html"):
        with pytest.raises(OptionError, match="html: expected a file"):
            inspect.main([str(fake.folder), "--html", str(file)])
    assert (fake.folder / "manifest.json").read_bytes() == before


def test_a_cache_that_serves_no_preset_has_a_page_with_a_teacher_that_it_serves(tmp_path):
    make_cache(tmp_path / "cache", roles=("dpo", "reference"), served=[Pair("dpo", "reference")], pairs=1)
    data, _ = write(tmp_path / "cache", tmp_path / "page.html")
    assert (data["teacher"]["anchor"], data["teacher"]["negative"]) == ("dpo", "reference")
    assert data["about"]["verdict"] is None and data["roles"] == ["dpo", "reference"]
