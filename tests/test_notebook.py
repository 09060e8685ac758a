"""A cache, a row and a teacher in a notebook: what they show, and their tables."""

import copy
import importlib
import pickle
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from fake_cache import make_cache

from shards import ShardCache, TeacherSpec
from shards.errors import OptionError
from shards.format import schema
from shards.notebook import table
from shards.notebook.plots import plot_trust
from shards.teacher.compose import compose
from shards.teacher.trust import assess

HOSTILE = '<script>alert("x")</script> &lt; &amp; \' "><b>\n$x$'


@pytest.fixture(scope="module", params=["float32", "compact"])
def cache(request, tmp_path_factory):
    return ShardCache(make_cache(tmp_path_factory.mktemp("notebook") / request.param, values=request.param).folder)


class Shown(HTMLParser):
    """What a browser shows of some HTML: its elements, text and tooltips."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.titles, self._open = [], "", [], []
        self.feed(html)
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._open.append(tag)
        self.titles += [value for name, value in attrs if name == "title"]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


# ---- a row


def test_a_row_shows_its_text_and_a_token_what_each_model_would_have_said(cache):
    row = cache.row(3)
    shown = Shown(cache.show(3)._repr_html_())
    assert shown.text.endswith("".join(row.texts))
    assert set(shown.tags) <= {"div", "span", "small"}
    assert len(shown.titles) == row.response.scores.num_positions
    for name in ("dpo", "reverse", "reference", "teacher"):
        assert all(re.search(rf"^{name} \S+%; likeliest ", title, re.MULTILINE) for title in shown.titles)
    best = int(np.argmax(row.teacher.logprobs[: row.teacher.support_count[0]]))
    likeliest = (
        f"teacher {np.exp(row.teacher.next_logprob[0]):.2%}; likeliest {row.text_of(row.teacher.support_ids[best])!r}"
    )
    assert likeliest in shown.titles[0]


def test_rewarded_tokens_are_blue_and_punished_ones_orange(cache):
    row = cache.row(1)
    looks = re.findall(r"background:rgba\((\d+),\d+,\d+,[\d.]+\);box", row._repr_html_())
    assert [look == "43" for look in looks] == (row.reward >= 0).tolist()
    assert len(set(looks)) == 2


def test_hostile_text_is_escaped_exactly_once(cache):
    hostile = copy.copy(cache.row(0))
    vars(hostile)["texts"] = [HOSTILE for _ in hostile.texts]
    hostile.text_of = lambda token_id: HOSTILE
    shown = Shown(cache.show(0).__class__(hostile)._repr_html_())
    assert shown.text.endswith(HOSTILE * len(hostile.texts))
    assert "script" not in shown.tags
    assert repr(HOSTILE) in shown.titles[0]


def test_a_row_as_a_table_has_a_line_for_each_position(cache):
    pytest.importorskip("pandas")
    row = cache.row(2)
    frame, response = row.to_pandas(), cache[2]
    scores, spec = response.scores, TeacherSpec.preset("aligndistil")
    teacher = compose(scores, spec, cache.plan.nodes)
    assert frame.index.tolist() == np.flatnonzero(response.loss_mask).tolist()
    assert frame["token_id"].tolist() == response.input_ids[response.loss_mask].tolist()
    following = scores.next_logprob
    np.testing.assert_allclose(frame["reward"], spec.beta * (following["dpo"] - following["reverse"]), rtol=1e-5)
    np.testing.assert_array_equal(frame["l1_distance_reverse"], scores.l1_distance["reverse"])
    np.testing.assert_array_equal(frame["strength"], teacher.strength)
    np.testing.assert_array_equal(frame["teacher_next_logprob"], teacher.next_logprob)
    assert list(frame.columns[:4]) == ["token_id", "token", "reward", "support_count"]


def test_a_row_is_light_and_can_be_pickled(cache):
    row = cache.row(-1)
    assert not {"texts", "teacher"} & set(vars(row))
    again = pickle.loads(pickle.dumps(row))
    assert (repr(again), again.texts) == (repr(row), row.texts)
    assert row.number == len(cache) - 1


def test_a_row_out_of_range_is_refused(cache):
    with pytest.raises(OptionError, match=r"row: expected a number under 10, got 10"):
        cache.row(10)


def test_what_a_notebook_prints_is_short(cache):
    teacher = cache.teacher([0, 1], TeacherSpec())
    for shown in (cache, cache[0], cache[0].scores, cache.row(0), cache.show(0), teacher):
        assert "\n" not in repr(shown)
        assert len(repr(shown)) < 250
    assert Shown(cache._repr_html_()).text.startswith("cache")
    assert Shown(teacher._repr_html_()).tags.count("tr") == 4
    assert "10, " in repr(cache)


# ---- tables


def test_every_column_of_a_table_is_what_the_cache_reads(cache):
    polars = pytest.importorskip("polars")
    columns = list(table.known_columns(cache.plan))
    frame = cache.to_polars(columns)
    assert isinstance(frame, polars.DataFrame)
    assert frame.columns == columns
    for number, row in enumerate(frame.iter_rows(named=True)):
        response = cache[number]
        scores = response.scores
        expected = {
            **{name: getattr(response, name) for name in ("sample_id", "pair_id", "chosen", "input_ids", "loss_mask")},
            "num_tokens": len(response.input_ids),
            "num_positions": scores.num_positions,
            "support_ids": scores.support_ids,
            "response": "".join(cache.row(number).texts[response.response_start :]),
            **{schema.logprobs_column(role): values for role, values in scores.logprobs.items()},
            **{schema.tail_logprob_column(role): values for role, values in scores.tail_logprob.items()},
            **{schema.next_logprob_column(role): values for role, values in scores.next_logprob.items()},
            **{schema.l1_distance_column(role): values for role, values in scores.l1_distance.items()},
            **{schema.tail_logpartition_column(p): np.ravel(v) for p, v in scores.tail_logpartition.items()},
        }
        for name, value in expected.items():
            np.testing.assert_array_equal(row[name], value, err_msg=name)


@pytest.mark.parametrize("name", ["support_ids", "dpo_logprobs", "reverse_next_logprob", "l1_distance_reference"])
def test_a_column_is_the_same_alone(cache, name):
    pytest.importorskip("polars")
    alone = cache.to_polars([name], rows=[7, 2, 2])
    assert alone.columns == [name]
    assert alone.equals(cache.to_polars(list(table.known_columns(cache.plan)))[[7, 2, 2]][[name]])


def test_lengths_and_pairs_come_from_the_index_alone(cache, monkeypatch):
    pytest.importorskip("polars")
    monkeypatch.setattr(type(cache), "_rows", None)
    frame = cache.to_polars(["pair_id", "num_tokens", "chosen"])
    assert frame["num_tokens"].to_list() == cache.index.num_tokens.tolist()


def test_a_table_that_is_larger_than_the_memory_is_refused(cache, monkeypatch):
    monkeypatch.setattr(table, "MEMORY_SHARE", 1e-12)
    with pytest.raises(OptionError, match=r"columns: expected a table of at most .* give fewer columns, or rows"):
        table.arrow_table(cache, ["dpo_logprobs"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"columns": ["dpo_codes"]}, "columns: expected names out of sample_id, .*, got 'dpo_codes'"),
        ({"columns": "sample_id"}, "columns: expected a list of names out of"),
        ({"columns": []}, "columns: expected a list of names out of"),
        ({"columns": ["sample_id"], "rows": [10]}, "rows: expected numbers from 0 and under 10, got 10..10"),
    ],
)
def test_a_wrong_column_or_row_is_refused_in_one_line(cache, given, message):
    with pytest.raises(OptionError, match=message):
        table.arrow_table(cache, **given)


# ---- plots and extras


def test_plots_are_matplotlib_figures(cache):
    figure = pytest.importorskip("matplotlib.figure")
    row, spec = cache.row(0), TeacherSpec()
    plot = row.plot()
    assert isinstance(plot, figure.Figure)
    heights = [patch.get_height() for patch in plot.axes[1].patches]
    np.testing.assert_allclose(heights, row.reward)
    trust = assess([cache[0].scores], spec, cache.plan.nodes, cache.plan.vocabulary_size)
    assert isinstance(plot_trust(trust), figure.Figure)


@pytest.mark.parametrize("name", ["pandas", "polars", "matplotlib"])
def test_a_missing_package_is_one_line_that_names_the_extra(cache, name, monkeypatch):
    import_module = importlib.import_module

    def without(wanted, *args):
        if wanted.split(".")[0] == name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return import_module(wanted, *args)

    monkeypatch.setattr(importlib, "import_module", without)
    act = {
        "pandas": cache.row(0).to_pandas,
        "polars": lambda: cache.to_polars(["chosen"]),
        "matplotlib": cache.row(0).plot,
    }[name]
    with pytest.raises(
        OptionError, match=rf"{name}: expected it to be installed; install aligndistil-offline\[notebook"
    ):
        act()
