"""The page of runs in a real browser: it draws every curve, asks for nothing, and shows the numbers of the log."""

import math
import re

import pytest
from browser import Opened
from fake_run import log, make_run, write_state

from student.report.__main__ import main

HOSTILE = "<script>alert(1)\u2215script> & co"

INK = """
canvas => {
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const found = new Set();
  for (let i = 0; i < pixels.length; i += 4) if (pixels[i + 3] > 250) found.add(pixels.slice(i, i + 3).join());
  return [...found];
}"""
"""The opaque colours of a canvas."""


@pytest.fixture(scope="module")
def runs_page(tmp_path_factory):
    """Three runs: one that has ended, one that was killed and has a hostile name, one whose loss was NaN for a step."""
    folder = tmp_path_factory.mktemp("runs")
    one = make_run(folder / "one")
    killed = make_run(folder / HOSTILE, done=8, options={"teacher": {"gain": 5.0, "beta": 0.1}})
    broken = make_run(folder / "broken", loss=lambda step: math.nan if step == 3 else 0.2)
    long = write_state(make_run(folder / "long"), log(6_000), 6_000)
    file = folder / "runs.html"
    main([*map(str, (one, killed, broken, long)), "--html", str(file)])
    return file


@pytest.fixture
def page(browser, runs_page):
    """The page, opened. In the end the browser has complained of nothing, and asked for nothing but the file."""
    with Opened(browser, runs_page) as opened:
        yield opened.page
    assert [text for text in opened.errors if "willReadFrequently" not in text] == []  # said of INK
    assert opened.requests == [runs_page.as_uri(), *(url for url in opened.requests if url.startswith("data:"))]


def draw_all(page):
    page.evaluate("document.querySelector('details').open = true")
    for chart in page.query_selector_all("figure"):
        chart.scroll_into_view_if_needed()
        chart.wait_for_selector("canvas")


def click_run(page, number):
    """Show or hide a run, and wait until the charts are drawn again."""
    page.evaluate(f"document.querySelector('.legend li:nth-child({number}) input').click()")
    page.wait_for_timeout(100)


def test_the_page_draws_every_curve_in_the_colours_of_its_runs_without_error_or_request(page):
    draw_all(page)
    canvases = page.query_selector_all("canvas")
    assert len(canvases) == len(page.query_selector_all("figure")) >= 6
    colours = [set(canvas.evaluate(INK)) for canvas in canvases]
    assert {"0,114,178", "213,94,0"} <= colours[0], "blue of the first run, vermilion of the second"


def test_a_hostile_name_is_shown_as_text(page):
    assert HOSTILE in page.inner_text("#runs")
    assert page.query_selector("#runs script") is None


def test_the_numbers_under_the_cursor_are_those_of_the_log(page):
    figure = page.query_selector("figure")
    figure.scroll_into_view_if_needed()
    box = figure.wait_for_selector(".u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 1, box["y"] + 20)
    assert page.inner_text("figure .told") == "step 6,000: run 1: 0.15, run 2: 0.24, run 3: 0.2, run 4: 0.15"
    click_run(page, 4)
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + 30)
    assert page.inner_text("figure .told") == "step 20: run 1: 0.15, run 2: 0.24, run 3: 0.2", "the axis ends earlier"


def test_the_legend_hides_a_run_in_every_chart(page):
    draw_all(page)
    click_run(page, 2)
    assert not any("213,94,0" in canvas.evaluate(INK) for canvas in page.query_selector_all("canvas"))
    for number in (1, 3, 4):
        click_run(page, number)
    assert not any("0,114,178" in canvas.evaluate(INK) for canvas in page.query_selector_all("canvas"))


def test_smoothing_and_the_logarithmic_axis_change_the_curves_and_do_not_fail(page):
    draw_all(page)
    before = page.query_selector("canvas").screenshot()
    page.evaluate(
        "{ const s = document.getElementById('smoothing'); s.value = 0.9; s.dispatchEvent(new Event('input')) }"
    )
    page.wait_for_timeout(100)
    smooth = page.query_selector("canvas").screenshot()
    page.click("#log")
    page.wait_for_timeout(100)
    assert len({before, smooth, page.query_selector("canvas").screenshot()}) == 3
    assert page.inner_text("output") == "0.9"


def test_a_phone_needs_no_scrolling_sideways(page):
    page.set_viewport_size({"width": 400, "height": 800})
    draw_all(page)
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert page.query_selector("canvas").bounding_box()["width"] <= 400


def test_on_paper_the_page_is_dark_on_white_also_in_dark_mode(page):
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(100)
    draw_all(page)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert "0,114,178" in page.query_selector("canvas").evaluate(INK)
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert "86,168,232" in page.query_selector("canvas").evaluate(INK)
    assert re.search(r"finished, 20 of 20 steps", page.inner_text("#runs"))
