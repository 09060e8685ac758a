"""The log of a training: every figure is described, lines for a person, the log in the folder, curves in the card."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from fake_run import log
from transformers import TrainerCallback

from student.log.curves import curves_svg
from student.log.figures import EVALUATION, FIGURES, NATS, figure_of, figures_table
from student.log.lines import SHOWN, change_text, changes_text, evaluation_text, next_text, step_text
from student.log.series import history
from student.loss.sparse import METRICS
from student.metrics import PER_SEQUENCE
from student.option_rules import EVAL_METRICS
from student.options import DistillArguments
from student.report.run import read_run
from student.train.__main__ import train

LOGS = {"loss": 0.01234, "kl_teacher": 0.031, "expected_reward": 0.0036, "learning_rate": 9.8e-7}


class _Watch(TrainerCallback):
    """What a person who looks into the folder finds after every step."""

    def __init__(self):
        self.seen = []
        self.after_the_first_step = None

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.after_the_first_step = read_run(Path(args.output_dir), "run").step

    def on_log(self, args, state, control, **kwargs):
        run = read_run(Path(args.output_dir), "run")
        self.seen.append((state.global_step, run.step, run.finished))


@pytest.fixture(scope="module")
def trained(sparse_cache, trio_folders, tmp_path_factory):
    """(trainer, what it printed, who looked into its folder) of four steps with an evaluation."""
    out, watch = tmp_path_factory.mktemp("run") / "student", _Watch()
    args = DistillArguments(
        **{"shards": [str(sparse_cache.folder)], "eval_shards": [str(sparse_cache.folder)], "output_dir": str(out)},
        **{"model": str(trio_folders["dpo"]), "train_on": "both", "use_cpu": True, "report_to": "none"},
        **{"save_strategy": "no", "eval_strategy": "steps", "eval_steps": 2, "max_steps": 4, "learning_rate": 1e-3},
        **{"global_batch_size": 4, "per_device_train_batch_size": 4, "fp16": True},
    )
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("student.log.callback.WRITE_SECONDS", 0.0)
        patch.setattr("student.log.callback.WRITE_SHARE", float("inf"))
        patch.setattr("student.log.callback.say", printed.append)
        patch.setattr("student.train.__main__.say", printed.append)
        patch.setattr("student.trainer.RunLog", lambda trainer: _after(trainer, watch))
        trainer = train(args)
    return trainer, "\n".join(printed), watch


def _after(trainer, watch):
    """RunLog, and after it in line the one who watches."""
    from student.log.callback import RunLog

    made = RunLog(trainer)
    trainer.add_callback(made)
    return watch


# ---- figures


def test_every_figure_that_a_run_logs_is_described(trained):
    trainer, _, _ = trained
    logged = {name for entry in trainer.state.log_history for name in entry if name != "step"}
    assert {"loss_scale", "skipped_steps", "eval_kl_teacher", "train_runtime", "grad_norm"} <= logged
    assert [name for name in logged if figure_of(name).meaning == "not described here"] == []


def test_every_metric_of_the_loss_and_the_evaluation_is_described():
    names = {*METRICS, *(f"{name}_per_sequence" for name in PER_SEQUENCE), *EVAL_METRICS}
    assert names <= set(FIGURES)
    for name in EVAL_METRICS:
        figure = figure_of(f"{EVALUATION}{name}")
        assert (figure.good, figure.unit) == (FIGURES[name].good, FIGURES[name].unit)


def test_every_figure_has_a_label_a_meaning_and_prints_a_number():
    for figure in FIGURES.values():
        assert figure.label and figure.meaning and not figure.meaning.endswith(".")
        assert figure.text(0.5) and figure.text(float("nan")) == "nan"
    assert len({figure.label for figure in FIGURES.values()}) == len(FIGURES)


def test_the_table_of_the_docs_is_that_of_the_figures():
    page = (Path(__file__).parents[1] / "docs" / "reporting.md").read_text(encoding="utf-8")
    assert "\n".join(figures_table()) in page, "python -c 'from student.log.figures import *; print(*figures_table())'"


def test_a_kl_of_two_equal_models_is_printed_as_0():
    assert [figure_of("kl_reference").text(value) for value in (-3e-7, 2e-7, 2e-6)] == ["0", "0", "2e-06"]
    assert figure_of("loss").text(2e-7) == "2e-07"


# ---- lines


def test_a_step_is_two_lines_with_units_and_the_way_that_is_good():
    logs = LOGS | {"tokens_per_second": 1204.4}
    assert step_text(logs, step=40, steps=500, seconds_left=725.0).splitlines() == [
        "step 40/500  8%  12 min 5 s left  1,204 tokens/s  learning rate 9.8e-07",
        "    lower is better: loss 0.0123, KL to the teacher 0.031; higher: reward +0.0036; nats per token",
    ]


def test_lines_stay_under_105_columns_with_long_numbers():
    logs = {"loss": 1.23e-5, "kl_teacher": 3.21e-5, "expected_reward": -1.23e-5, "learning_rate": 1.23e-7}
    logs |= {"tokens_per_second": 1_234_567.0}
    text = step_text(logs, step=123_456, steps=1_234_567, seconds_left=1e6)
    assert max(map(len, text.splitlines())) <= 105


def test_the_last_step_has_no_time_left():
    assert "left" not in step_text(LOGS, step=5, steps=5, seconds_left=0.0)


def test_skipped_steps_are_said():
    assert "2 steps skipped" in step_text(LOGS | {"skipped_steps": 2}, step=1, steps=2, seconds_left=None)


def test_an_evaluation_is_told_as_a_step_is():
    logs = {f"{EVALUATION}{name}": value for name, value in LOGS.items()}
    first, second = evaluation_text(logs, step=40).splitlines()
    assert (first, second) == (
        "evaluation after step 40",
        step_text(LOGS, step=1, steps=1, seconds_left=None)[-len(second) :],
    )


def test_the_figures_of_a_line_have_the_unit_and_the_ways_that_it_says():
    assert [(FIGURES[name].unit, FIGURES[name].good) for name in SHOWN] == [
        *((NATS, "lower"), (NATS, "lower"), (NATS, "higher"))
    ]


def test_the_way_of_a_figure_says_whether_it_is_better():
    for name, first, last, word in (
        ("loss", 0.3, 0.2, "better"),
        ("loss", 0.2, 0.3, "worse"),
        ("expected_reward", 0.1, 0.2, "better"),
        ("expected_reward", 0.2, 0.1, "worse"),
        ("kl_reference", 0.0, 0.1, "token"),
        ("loss", 0.2, 0.2, "token"),
        ("loss", 0.2, float("nan"), "worse"),
    ):
        assert change_text(figure_of(name), first, last).endswith(word)


def test_the_end_tells_the_first_and_the_last_tenth_of_the_logged_steps():
    text = changes_text([*log(20), {"step": 20, "train_runtime": 1.0}])
    assert text.startswith("mean of the first 2 logged steps -> mean of the last 2\n  lower is better")
    assert re.search(r"loss +0.289 -> 0.154 +nats per token  better\n", text)
    assert changes_text(log(4)).startswith("from the first to the last logged step\n")
    assert changes_text(log(20)[:1]) == ""


def test_what_to_type_next_names_the_students_folder_and_its_held_out_cache():
    assert "student.evaluate --model out --shards held" in next_text("out", ["held"])
    assert "vllm serve out" in next_text("out", [])


# ---- a run


def test_a_run_says_two_lines_a_step_and_no_dict(trained):
    _, printed, _ = trained
    assert [line.split()[1] for line in printed.splitlines() if line.startswith("step ")] == [
        "1/4",
        "2/4",
        "3/4",
        "4/4",
    ]
    assert len(re.findall(r"^evaluation after step [24]$", printed, re.MULTILINE)) == 3
    assert "{" not in printed and "eval_loss" not in printed
    end = printed[printed.index(": done, after 4 steps; ") :]
    assert "from the first to the last logged step" in end and "\nnext\n  python -m student.report " in end


def test_the_log_in_the_folder_is_whole_and_up_to_date_at_every_step(trained):
    trainer, _, watch = trained
    seen = watch.seen
    assert watch.after_the_first_step == 1, "before its first line"
    assert [found for step, found, _ in seen] == [step for step, _, _ in seen]
    assert not any(finished for _, _, finished in seen[:4])
    run = read_run(Path(trainer.args.output_dir), "student")
    assert run.finished and run.figures["loss"].steps.tolist() == [1, 2, 3, 4]
    assert run.options["teacher.gain"] == "10" and run.options["global_batch_size"] == "4"


def test_the_dict_is_still_in_the_state(trained):
    trainer, _, _ = trained
    state = json.loads((Path(trainer.args.output_dir) / "trainer_state.json").read_text())
    assert state["log_history"] == trainer.state.log_history


def test_the_card_shows_the_curves_and_the_way_of_the_figures(trained):
    out = Path(trained[0].args.output_dir)
    card = (out / "README.md").read_text()
    assert "](curves.svg)" in card
    assert re.search(r"\| loss \(nats per token\) \| \S+ \| \S+ \| lower \|", card)
    root = ElementTree.parse(out / "curves.svg").getroot()
    assert len(root.findall(".//{*}polyline")) == 4


# ---- curves


def test_curves_need_two_steps_and_leave_out_what_is_not_a_number():
    assert curves_svg(history(log(1))) is None
    text = curves_svg(history(log(20, loss=lambda step: float("nan") if step > 1 else 0.3)))
    assert text.count("<polyline") == 3 and "nan" not in text
    assert curves_svg({}) is None


def test_curves_of_a_long_run_are_a_small_picture_with_a_band():
    text = curves_svg(history(log(50_000)))
    assert len(text) < 40_000 and text.count("<polygon") == 4
