"""What the page of a cache says about the whole cache, and how its list is searched, filtered and sorted."""

import numpy as np
import pytest
from browser import NARROW, Opened
from fake_cache import make_cache
from readable_cache import readable_cache

from shards import ShardCache, TeacherSpec
from shards.format.schema import Pair
from shards.inspect.__main__ import main
from shards.inspect.around import around
from shards.inspect.bars import signed_bars
from shards.preferences.pairs import accuracy, find_pairs, preference_margins
from shards.survey.survey import row_words, take_survey
from shards.teacher.spec import PRESETS
from shards.token_texts import TokenTexts


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    folder = tmp_path_factory.mktemp("around") / "cache"
    return readable_cache(folder, pairs=12, values="compact", response_tokens=16)


@pytest.fixture(scope="module")
def cache(fake):
    return ShardCache(fake.folder)


@pytest.fixture(scope="module")
def survey(cache):
    return take_survey(cache, "reverse", 0.1, TokenTexts.of(cache))


@pytest.fixture(scope="module")
def file(fake):
    path = fake.folder.parent / "page.html"
    main([str(fake.folder), "--html", str(path)])
    return path


@pytest.fixture(scope="module")
def about(cache, survey):
    return around(cache, TeacherSpec(), survey, {})


# ---- figures


def test_accuracies_are_those_of_the_preferences(cache, about):
    margins = preference_margins(cache, find_pairs(cache), PRESETS)
    told = {name: share for name, share, _, _ in about["preferences"]["accuracy"]}
    assert told["dpo"] == accuracy(margins["dpo"])
    assert told["reference"] == accuracy(margins["reference"])
    assert {name: told[f"teacher {name}"] for name in PRESETS} == {name: accuracy(margins[name]) for name in PRESETS}


def test_margins_are_counted_in_bars_that_do_not_cross_zero(survey):
    counts, edges = signed_bars(survey.rows.margins)
    assert counts.sum() == len(survey.rows.margins)
    assert np.abs(edges).min() == 0
    assert counts[edges[:-1] >= 0].sum() == (survey.rows.margins >= 0).sum()


def test_every_preset_has_a_verdict_or_what_it_lacks(about, tmp_path):
    judged = [about["verdict"], *about["teachers"]]
    assert sorted(one["name"] for one in judged) == sorted(PRESETS)
    assert all(one["headline"] and one["shares"] for one in judged)
    make_cache(tmp_path, roles=("dpo", "reference"), served=[Pair("dpo", "reference")])
    cache = ShardCache(tmp_path)
    none = around(cache, None, take_survey(cache, "reference", 0.1, TokenTexts.of(cache)), {})
    assert none["verdict"] is none["distributions"] is None
    assert all("needs the" in one["lacking"] for one in none["teachers"])
    assert len(none["teachers"]) == len(PRESETS)


def test_distributions_are_of_all_positions_and_columns_of_all_bytes(cache, about):
    for chart in about["distributions"]["charts"]:
        assert sum(chart["counts"]) == cache.plan.positions
        assert len(chart["edges"]) == len(chart["counts"]) + 1
    assert sum(share for _, share, _ in about["columns"]["entries"]) == pytest.approx(1)
    assert (about["rows"], about["cut"], about["skipped"]) == (len(cache), 2, {"empty": 1, "overlong": 0})


def test_a_cache_of_chosen_responses_has_a_page_without_margins(tmp_path, browser):
    make_cache(tmp_path / "cache", pairs=1)
    main([str(tmp_path / "cache"), "--html", str(tmp_path / "page.html"), "--rows", "0"])
    with Opened(browser, tmp_path / "page.html") as opened:
        opened.page.select_option("#filter-told", "alone")
        assert opened.evaluate("page.rows.state.shown") == [0]
        assert opened.errors == []


# ---- in the browser


SHOWN = "page.rows.state.shown"


def test_the_list_is_sorted_and_bounded_by_the_figures_of_the_survey(browser, file, survey):
    rows = survey.rows
    keys = {"margin": rows.margin, "reward": rows.reward, "distance": rows.largest_distance, "length": rows.length}
    with Opened(browser, file) as opened:
        for name, value_R in keys.items():
            opened.page.select_option("#filter-order", name)
            assert opened.evaluate(SHOWN) == np.lexsort((rows.row, -value_R)).tolist(), name
        opened.page.check("#filter-rising")
        assert opened.evaluate(SHOWN) == np.lexsort((rows.row, rows.length)).tolist()
        opened.page.fill("#filter-least", "12")
        assert set(opened.evaluate(SHOWN)) == set(rows.row[rows.length >= 12].tolist())
        assert opened.errors == []


def test_the_list_is_filtered_by_what_the_preference_tells_and_by_a_word(browser, file, survey, cache):
    rows, texts = survey.rows, TokenTexts.of(cache)
    responses = [cache[row] for row in range(len(cache))]
    answers = ["".join(texts.pieces(r.input_ids)[r.response_start :]).lower() for r in responses]
    with Opened(browser, file) as opened:
        opened.page.select_option("#filter-told", "right")
        assert opened.evaluate(SHOWN) == rows.row[rows.margin > 0].tolist()
        opened.page.select_option("#filter-told", "wrong")
        opened.page.select_option("#filter-kind", "rejected")
        assert opened.evaluate(SHOWN) == rows.row[(rows.margin <= 0) & ~rows.chosen].tolist()
        opened.page.select_option("#filter-told", "all")
        opened.page.select_option("#filter-kind", "all")
        opened.page.fill("#filter-text", "SKY")
        assert opened.evaluate(SHOWN) == [row for row, answer in enumerate(answers) if "sky" in answer]
        count = opened.page.locator(".side > .quiet").inner_text()
        assert count == f"{len(opened.evaluate(SHOWN))} of {len(cache)} responses"


def test_what_is_told_right_follows_the_negative_of_the_teacher(browser, file, cache):
    rows = take_survey(cache, "reference", 0.1, TokenTexts.of(cache)).rows
    with Opened(browser, file) as opened:
        opened.page.select_option("#filter-told", "right")
        opened.page.select_option("#control-preset", "linear")
        assert opened.evaluate(SHOWN) == rows.row[rows.margin > 0].tolist()


@pytest.mark.parametrize("kind", ["token", "word"])
def test_a_click_on_a_listed_token_or_word_shows_the_rows_that_have_it(browser, file, survey, cache, kind):
    best = (survey.tokens(20) if kind == "token" else survey.words(20)).punished[1]
    expected = []
    for row in range(len(cache)):
        response = cache[row]
        words = {word.text for word in row_words(response.input_ids, response.loss_mask, survey.texts)}
        tokens = response.input_ids[response.loss_mask]
        expected += [row] if (best.token_id in tokens if kind == "token" else best.text in words) else []
    with Opened(browser, file) as opened:
        table = opened.page.locator(".tops", has_text=f"Punished {kind}s")
        line = table.locator("tbody tr").nth(1)
        assert line.locator("td").nth(1).inner_text() == f"{best.count:,}"
        line.locator("button").click()
        assert opened.evaluate(SHOWN) == expected
        assert 0 < len(expected) < len(cache)
        opened.page.click("#filter-listed")
        assert len(opened.evaluate(SHOWN)) == len(cache)
        assert opened.errors == []


def test_lists_are_sorted_by_the_mean_on_demand(browser, file, survey):
    with Opened(browser, file) as opened:
        opened.page.select_option("#tops-by", "mean")
        counts = opened.page.locator(".tops", has_text="Rewarded tokens").locator("td:nth-child(2)").all_inner_texts()
    assert counts == [f"{entry.count:,}" for entry in survey.tokens(20, "mean").rewarded]


def test_charts_have_axes_with_numbers_and_units_and_a_bar_for_every_count(browser, file, about):
    with Opened(browser, file) as opened:
        charts = opened.page.locator("svg.chart")
        assert charts.count() == 2 + len(about["distributions"]["charts"])
        for i in range(charts.count()):
            assert charts.nth(i).locator("text.title").count() == 2
            assert charts.nth(i).locator("text.tick").count() >= 2
        bars = opened.page.locator("#distributions svg.chart").nth(1).locator("rect")
        assert bars.count() == np.count_nonzero(about["distributions"]["charts"][1]["counts"])
        margins = opened.page.locator("#preferences svg.chart").first
        counts, edges = (np.array(about["preferences"][name]) for name in ("counts", "edges"))
        below = np.count_nonzero(counts[edges[:-1] < 0])
        assert margins.locator("rect.down").count() == below


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-3.2, 2.1, [-2, 0, 2]), (5, 5, [5])]
)
def test_ticks_are_round_numbers_within_the_axis(browser, file, low, high, expected):
    with Opened(browser, file) as opened:
        assert opened.evaluate(f"page.charts.ticks({low}, {high}, 5)") == pytest.approx(expected)
        assert opened.evaluate("page.charts.decades(0.002, 300)") == pytest.approx([0.01, 0.1, 1, 10, 100])


def test_nothing_is_wider_than_a_phone(browser, file):
    with Opened(browser, file, size=NARROW, scheme="dark") as opened:
        assert opened.evaluate("document.documentElement.scrollWidth") == NARROW["width"]
        assert opened.errors == []
