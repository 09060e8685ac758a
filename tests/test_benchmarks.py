"""python -m benchmarks: each benchmark in a process, one table of headlines, one line if one fails."""

from functools import partial
from pathlib import Path

import fresh
import pytest

from benchmarks import __main__ as runner
from benchmarks.headlines import HEADLINES, Headline, of_building, of_online, table
from shards.errors import AlignDistilError, OptionError


def in_a_fresh_process(folder, command, *, stdout, **given):
    """What subprocess.run does for a benchmark, without loading its libraries again."""
    done = fresh.run(command[2], command[3:], Path.cwd(), folder)
    stdout.write(done.stdout + done.stderr)
    return done


def test_the_headlines_of_a_benchmark_come_from_its_results(tmp_path, capsys, monkeypatch):
    tiny = "--hidden_size 16 --layers 1 --heads 2 --vocabulary 60 --pairs 1 --sequence_length 12 --prompt_tokens 4"
    monkeypatch.setattr(runner.subprocess, "run", partial(in_a_fresh_process, tmp_path / "process"))
    monkeypatch.setitem(runner.QUICK, "building", f"{tiny} --top_k 8 --repeats 1")
    runner.main(["--only", "building", "--quick", "--out", str(tmp_path)])
    assert "| building | a build over three bare forward passes |" in capsys.readouterr().out
    assert (tmp_path / "summary.md").exists() and (tmp_path / "building" / "building.md").exists()


def test_a_benchmark_that_fails_is_named_with_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(runner.subprocess, "run", partial(in_a_fresh_process, tmp_path / "process"))
    monkeypatch.setitem(runner.QUICK, "building", "--pairs 0")
    with pytest.raises(AlignDistilError, match=r"building: expected exit code 0, got 2; .*log.txt ends with"):
        runner.main(["--only", "building", "--quick", "--out", str(tmp_path)])


def test_every_benchmark_has_headlines_and_small_sizes():
    folders = {path.parent.name for path in runner.Path(runner.__file__).parent.glob("*/__main__.py")}
    assert folders == set(HEADLINES) == set(runner.QUICK)


def test_figures_stand_beside_what_was_asked_for():
    settings = {"device_type": "cuda"}
    found = of_building({"seconds": {"score": 3.0, "write": 0.5, "check": 0.5, "floor": 2.0}, "settings": settings})
    assert found == [Headline("a build over three bare forward passes", "2.00", "1.05 or less")]
    presets = {"a": {"metrics": {"x": {"difference": 0.001}, "y": {"difference": 0.02}}}}
    assert of_online({"presets": presets})[0].figure == "2.00%"
    assert "| 2.00 | 1.05 or less |" in table({"building": found})


@pytest.mark.parametrize("flags", [{"only": ["speed"]}, {"threads": 0}])
def test_flags_that_cannot_be_are_refused(flags):
    with pytest.raises(OptionError):
        runner.Options(**flags)
