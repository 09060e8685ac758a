"""student.report: what is read of a run, also of one that was killed; tables, thinning, and the page of curves."""

import base64
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_run import OPTIONS, log, make_run, write_state

from shards.errors import AlignDistilError, CacheDamaged, OptionError
from student import Run
from student.log.curves import curves_svg
from student.log.series import history, thinned
from student.report.__main__ import main
from student.report.page import page_data
from student.report.run import differing, read_run
from student.report.text import report_text

HOSTILE = "<script>alert(1)</script> & co"


def run_of(folder, **settings):
    return read_run(make_run(folder, **settings), folder.name)


# ---- in a notebook


def test_a_run_tells_a_notebook_how_it_goes_in_escaped_text_and_draws_its_curves(tmp_path):
    run = Run.read(make_run(tmp_path / "run <b>", steps=20))
    assert repr(run) == "Run('run <b>', finished, 20 of 20 steps)"
    html = run._repr_html_()
    assert html.startswith("<b>run &lt;b&gt;</b><br>finished, 20 of 20 steps<br><img ")
    (encoded,) = re.findall(r'base64,([^"]+)"', html)
    assert base64.b64decode(encoded).decode() == curves_svg(run.figures)
    assert "<img" not in Run.read(make_run(tmp_path / "begun", done=1))._repr_html_()


def test_a_run_plots_the_figures_that_it_is_asked_for(tmp_path):
    pytest.importorskip("matplotlib")
    run = Run.read(make_run(tmp_path / "run", steps=20))
    first, second, third, empty = run.plot(["loss", "kl_teacher", "support_mass"]).axes
    assert first.lines[0].get_ydata().tolist() == run.figures["loss"].mean.tolist()
    assert "lower is better" in first.get_title() and "higher is better" in third.get_title()
    assert not empty.axison and len(second.lines) == 1
    assert len(run.plot().axes) == 4
    with pytest.raises(OptionError, match=r"figure: expected one of loss, .*, got 'los'"):
        run.plot(["los"])


# ---- reading


def test_a_run_that_has_ended_says_so_and_has_every_logged_figure(tmp_path):
    run = run_of(tmp_path / "run", steps=20)
    assert (run.step, run.steps, run.finished) == (20, 20, True)
    assert run.status == "finished, 20 of 20 steps"
    assert run.figures["loss"].steps.tolist() == list(range(1, 21))
    assert run.figures["loss"].mean[-1] == 0.15
    assert run.options["teacher.gain"] == "10" and run.options["caches"] == "abababababab"


def test_a_killed_run_is_read_as_far_as_it_was_written(tmp_path):
    run = run_of(tmp_path / "run", steps=20, done=7)
    assert (run.step, run.steps, run.finished) == (7, 20, False)
    assert run.status.startswith("not finished: step 7 of 20, last written 20")
    assert run.figures["loss"].steps[-1] == 7


def test_a_run_that_stopped_by_itself_before_its_last_step_says_so(tmp_path):
    make_run(tmp_path)
    write_state(tmp_path, log(20)[:7], 20, ended=True)
    assert read_run(tmp_path, "run").status == "finished, 7 of 20 steps: stopped early"


def test_without_a_log_of_its_own_a_run_is_read_from_its_newest_checkpoint(tmp_path):
    for step in (5, 10):
        write_state(tmp_path / f"checkpoint-{step}", log(20)[:step], 20)
        (tmp_path / f"checkpoint-{step}" / "distill_run.json").write_text(json.dumps(OPTIONS | {"files": None}))
    run = read_run(tmp_path, "run")
    assert (run.step, run.note) == (10, "")
    assert "files" not in run.options


@pytest.mark.parametrize("torn", ['{"global_step": 10, "max_st', "", None])
def test_a_half_written_checkpoint_gives_way_to_the_one_before_it_and_is_named(tmp_path, torn):
    for step in (5, 10):
        write_state(tmp_path / f"checkpoint-{step}", log(20)[:step], 20)
    (tmp_path / "distill_run.json").write_text(json.dumps(OPTIONS))
    newest = tmp_path / "checkpoint-10" / "trainer_state.json"
    newest.unlink() if torn is None else newest.write_text(torn)
    run = read_run(tmp_path, "run")
    assert run.step == 5
    assert run.note.startswith("checkpoint-10 is left aside: ")


def test_a_torn_log_of_the_run_itself_is_refused_and_not_repaired(tmp_path):
    make_run(tmp_path)
    file = tmp_path / "trainer_state.json"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(CacheDamaged, match="expected the log of a run, got "):
        read_run(tmp_path, "run")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (None, None, "expected a run of student.train, found no trainer_state.json and no checkpoint"),
        ("trainer_state.json", "[]", "expected the log of a run, got "),
        ("trainer_state.json", '{"max_steps": 1}', "expected the log of a run, got no 'global_step'"),
        (
            "trainer_state.json",
            '{"global_step": "a", "max_steps": 1, "log_history": []}',
            "expected numbers of steps, got 'a' of 1",
        ),
        (
            "trainer_state.json",
            '{"global_step": 1, "max_steps": 1, "log_history": [{"loss": 1}]}',
            "expected a step in entry 0 of log_history, got ",
        ),
        (
            "trainer_state.json",
            '{"global_step": 1, "max_steps": 1, "log_history": []}',
            "found a log but no distill_run.json or aligndistil.json",
        ),
        ("checkpoint-1/trainer_state.json", "{", "expected a log, found none that is whole: checkpoint-1 is left"),
    ],
)
def test_a_folder_that_is_no_run_of_ours_is_refused_in_one_line(tmp_path, name, content, expected):
    if name is not None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(AlignDistilError) as caught:
        read_run(tmp_path, "run")
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_bad_flags_are_refused_before_anything_is_read(tmp_path):
    run = make_run(tmp_path / "run")
    for arguments, expected in (
        ([run, "--html", tmp_path / "a.txt"], "html: expected a file name that ends in .html or .htm"),
        ([run, "--html", tmp_path / "none" / "a.html"], "html: expected a file in a folder that is there"),
        ([tmp_path / "none"], "none: expected the folder of a run, found nothing"),
        ([run / "trainer_state.json"], "expected the folder of a run, found a file"),
        ([run, tmp_path / "run" / ".." / "run"], "expected every run once, got the same folder as"),
    ):
        with pytest.raises(OptionError, match=re.escape(expected)):
            main(list(map(str, arguments)))


def test_a_loss_that_is_not_a_number_is_read_and_stays_a_gap(tmp_path):
    run = run_of(tmp_path / "run", loss=lambda step: math.nan if step == 3 else math.inf if step == 4 else 0.1)
    assert np.flatnonzero(np.isnan(run.figures["loss"].mean)).tolist() == [2, 3]
    assert page_data([run])["runs"][0]["figures"]["loss"]["mean"][1:5] == [0.1, None, None, 0.1]


# ---- series


def test_thinning_keeps_the_extremes_the_mean_and_the_last_step():
    values = np.random.default_rng(0).normal(size=10_007)
    values[[17, 9_999]] = [40.0, -50.0]
    (series,) = history({"loss": value, "step": step} for step, value in enumerate(values.tolist(), 1)).values()
    thin = thinned(series, 100)
    assert len(thin.steps) <= 100 and thin.of_each == 101
    assert (thin.high.max(), thin.low.min()) == (40.0, -50.0)
    assert thin.steps[-1] == 10_007
    counts = np.diff([0, *thin.steps])
    assert (thin.mean * counts).sum() == pytest.approx(values.sum())
    assert thinned(series, 10_007) is series


def test_a_step_that_is_logged_twice_counts_once():
    found = history([{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 1, "loss": 3.0, "epoch": 0.5}])
    assert (found["loss"].steps.tolist(), found["loss"].mean.tolist()) == ([1, 2], [3.0, 2.0])
    assert len(found["epoch"].steps) == 1


# ---- tables


def test_only_options_that_differ_are_in_the_table_of_differences(tmp_path):
    one = run_of(tmp_path / "one")
    two = run_of(tmp_path / "two", options={"teacher": {"gain": 5.0, "beta": 0.1}, "padding_free": True})
    assert differing([one, two]) == {"teacher.gain": ["10", "5"], "padding_free": ["-", "True"]}
    assert differing([one]) == {}


def test_the_terminal_shows_every_figure_of_every_run_from_begin_to_end_in_100_columns(tmp_path, capsys):
    one = make_run(tmp_path / "one")
    two = make_run(tmp_path / "two", done=5, options={"teacher": {"gain": 5.0, "beta": 0.1}})
    main([str(one), str(two)])
    printed = capsys.readouterr().out
    figures = printed[printed.index("\nloss") :]
    assert max(map(len, figures.splitlines())) <= 100
    assert re.search(
        r"loss \(nats per token\) +run 1  0.289 -> 0.154 +\(lower is better\)\n +run 2  0.292 -> 0.26", printed
    )
    assert re.search(r"teacher.gain +run 1  10\n +run 2  5\n", printed)
    assert "reward (nats per token)" in printed and "+0.0192 -> +0.0103" in printed


def test_a_run_of_one_logged_step_and_one_of_none_are_shown(tmp_path):
    text = report_text([run_of(tmp_path / "one", done=1), run_of(tmp_path / "none", done=0)])
    assert re.search(r"loss \(nats per token\) +run 1  0.292 +\(lower is better\)\n(?! +run 2)", text)
    assert "step 0 of 20" in text


# ---- the page


def test_a_page_of_a_very_long_run_is_small_and_says_that_it_is_thinned(tmp_path):
    make_run(tmp_path)
    entries = log(60_000)
    entries[30_000]["loss"] = 99.0
    run = read_run(write_state(tmp_path, entries, 60_000), "long")
    data = page_data([run])
    assert data["thinned"].startswith("Long curves are thinned: each point is the mean of up to 40 logged steps")
    assert max(data["runs"][0]["figures"]["loss"]["high"]) == 99.0
    assert len(json.dumps(data)) < 1e6
    assert page_data([run_of(tmp_path / "short")])["thinned"] == ""


def test_many_runs_share_the_budget_of_the_page(tmp_path):
    run = read_run(write_state(make_run(tmp_path), log(3_000), 3_000), "long")
    assert len(json.dumps(page_data([run] * 40))) < 2 * len(json.dumps(page_data([run] * 20)))
    assert len(json.dumps(page_data([run] * 40))) < 4e6


def test_a_name_of_a_run_is_text_on_the_page_and_not_markup(tmp_path, capsys):
    folder = make_run(tmp_path / HOSTILE.replace("/", "\u2215"), options={"note": HOSTILE})
    main([str(folder), "--html", str(tmp_path / "runs.html")])
    text = (tmp_path / "runs.html").read_text()
    assert "alert(1)<" not in text and "\\u003cscript\\u003ealert(1)" in text
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'runs.html'}: written, 1 run, ")


def test_the_report_needs_neither_torch_nor_transformers():
    code = "import sys, student.report.__main__; assert not {'torch', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_charts_library_comes_with_its_licence():
    vendor = Path(__file__).parents[1] / "shards" / "html" / "vendor"
    assert "MIT License" in (vendor / "uPlot.LICENSE").read_text()
