"""`shards.inspect --row` and `--top`: readable text and lists, coloured on a terminal, plain and stable elsewhere."""

import re

import numpy as np
import pytest
from fake_cache import make_cache
from readable_cache import readable_cache

from shards import ShardCache
from shards.errors import OptionError
from shards.inspect.__main__ import main
from shards.inspect.coloured import PUNISHED, REWARDED, coloured
from shards.survey.survey import take_survey
from shards.teacher.reward import response_reward
from shards.token_texts import TokenTexts

ANSI = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return readable_cache(tmp_path_factory.mktemp("terminal") / "cache", pairs=12)


@pytest.fixture
def shown(capsys, monkeypatch):
    """The output of the command; colour: as on a terminal."""

    def run(*arguments, colour=False):
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("TERM", "xterm-256color")
        if colour:
            monkeypatch.setenv("FORCE_COLOR", "1")
        main([str(argument) for argument in arguments])
        monkeypatch.delenv("FORCE_COLOR", raising=False)
        return capsys.readouterr().out

    return run


def squeezed(text):
    return "".join(text.split())


def test_a_row_is_shown_as_its_text(fake, shown):
    cache = ShardCache(fake.folder)
    text = shown(fake.folder, "--row", 3).split("\n\n", 1)[1].split("\nteacher ")[0]
    assert squeezed(text) == squeezed("".join(TokenTexts.of(cache).pieces(cache[3].input_ids)))


def test_without_a_terminal_nothing_is_coloured_and_with_one_no_character_changes(fake, shown):
    plain, bright = shown(fake.folder, "--row", 3), shown(fake.folder, "--row", 3, colour=True)
    assert "\x1b" not in plain
    assert "\x1b[" in bright
    legend = next(part for part in ANSI.sub("", bright).split("\n\n") if part.startswith("blue: "))
    end = legend.index("not distilled") + len("not distilled\n")
    assert ANSI.sub("", bright).replace(legend[:end], "") == plain


def test_no_color_is_respected(fake, capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    main([str(fake.folder), "--row", "3"])
    text = capsys.readouterr().out
    assert "blue:" not in text
    assert not re.search(r"\x1b\[[0-9;]*(3[0-9]|4[0-9])", text)


def test_rewarded_tokens_are_blue_punished_ones_orange_and_the_prompt_is_neither():
    mask = np.array([False, True, True, True, False])
    pieces = ["p\n", " a", " b", "c", "\n\nd"]
    text = coloured(pieces, mask, np.array([1.0, -1.0, 0.01]), np.array([0.0, 0.0, 1.0]), 1)
    assert text.plain == "".join(pieces)
    styles = {text.plain[span.start : span.end].strip(): str(span.style) for span in text.spans}
    assert (styles["a"], styles["b"]) == (REWARDED[-1], PUNISHED[-1])
    assert styles["c"] == "underline"
    assert styles["p"] == styles["d"] == "dim"


def test_a_text_cannot_command_the_terminal(tmp_path, shown):
    readable_cache(tmp_path, "\x1b[31mred\x07 \u202eabc [bold]x[/bold] &lt;b&gt;\r", pairs=2, response_tokens=120)
    for flags in (("--row", 1), ("--top", 50, "--min_count", 1)):
        text = shown(tmp_path, *flags)
        assert not {"\x1b", "\x07", "\u202e", "\r"} & set(text)
    text = squeezed(shown(tmp_path, "--row", 1))
    assert r"\x1b[31mred\x07" in text
    assert "[bold]x[/bold]&lt;b&gt;" in text


def test_a_long_prompt_is_cut_and_says_so():
    pieces = ["p" * 1_000, "a"]
    text = coloured(pieces, np.array([False, True]), np.ones(1), np.ones(1), 1).plain
    assert text == "(400 characters before) …" + "p" * 600 + "a"


def test_the_table_has_the_rewards_of_the_tokens(fake, shown):
    cache = ShardCache(fake.folder)
    reward_N = response_reward(cache[2], "reverse", 0.1)
    text = shown(fake.folder, "--row", 2)
    lines = text.splitlines()[-len(reward_N) :]
    found = [float(re.search(r"(-?\d+\.\d{4})  *\d\.\d{4}", line).group(1)) for line in lines]
    assert found == pytest.approx(reward_N, abs=6e-5)
    assert f"{reward_N.sum():.4f} in all" in text


@pytest.mark.parametrize("by", ["total", "mean"])
def test_the_tops_are_those_of_the_survey(fake, shown, by):
    cache = ShardCache(fake.folder)
    survey = take_survey(cache, "reverse", 0.1, TokenTexts.of(cache))
    text = shown(fake.folder, "--top", 6, "--by", by, "--min_count", 3)
    assert max(map(len, text.splitlines())) <= 100
    for name, (rewarded, punished) in (("tokens", survey.tokens(6, by, 3)), ("words", survey.words(6, by, 3))):
        lines = text.split(f"most rewarded {name}")[1].splitlines()[2:8]
        for line, best, worst in zip(lines, rewarded, punished, strict=True):
            left, right = line[:49], line[49:]
            assert left.split()[-3:] == [str(best.count), f"{best.total:.3f}", f"{best.mean:.4f}"]
            assert right.split()[-3:] == [str(worst.count), f"{worst.total:.3f}", f"{worst.mean:.4f}"]
    assert f"sorted by {by}; only what occurs 3 times or more" in text
    assert f"on all {len(cache)} responses" in text


def test_a_cache_without_reverse_is_rewarded_against_the_reference(tmp_path, shown):
    make_cache(tmp_path, roles=("dpo", "reference"))
    text = shown(tmp_path, "--top", "--min_count", 1)
    assert "beta (l_dpo - l_reference), beta 0.1" in text
    assert "words        none: the cache has no tokenizer.json" in text


def test_numbers_that_list_nothing_are_refused(fake):
    with pytest.raises(OptionError, match=r"^top: expected 1 or more, got 0$"):
        main([str(fake.folder), "--top", "0"])
    with pytest.raises(OptionError, match=r"^min_count: expected 1 or more, got 0$"):
        main([str(fake.folder), "--top", "--min_count", "0"])
