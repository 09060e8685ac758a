"""`python -m shards.inspect`: its output for a cache, for an unfinished build, and for one row."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from fake_cache import make_cache, write_cache

from shards import ShardCache, TeacherSpec
from shards.errors import CacheMissing, OptionError
from shards.format.nodes import StrengthNodes
from shards.format.schema import Pair
from shards.inspect.__main__ import main
from shards.teacher.served import lacks

WIDTH = 100


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("inspect") / "cache")


def shown(capsys, *arguments):
    """The output, which must fit the terminal."""
    main([str(argument) for argument in arguments])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= WIDTH
    return text


def run(*arguments):
    command = [sys.executable, "-m", "shards.inspect", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_cache_is_described_by_models_data_and_options(fake, capsys):
    text = shown(capsys, fake.folder)
    for role in fake.plan.roles:
        digest = fake.plan.identity["models"][role]["weights_sha256"]
        line = next(line for line in text.splitlines() if f"/models/{role}" in line)
        assert f" {role} " in line
        assert digest[:12] in line
        assert digest[:13] not in text
    assert fake.plan.sha256[:12] in text
    assert "preferences.jsonl" in text
    assert "24 tokens" in text
    assert "max_length 64" in text


def test_rows_tokens_and_bytes_are_those_of_the_manifest(fake, capsys):
    text = shown(capsys, fake.folder)
    positions = sum(response.scores.num_positions for response in fake.responses)
    entries = sum(response.scores.num_entries for response in fake.responses)
    size = sum((fake.folder / shard.file).stat().st_size for shard in fake.plan.shards)
    assert "10, of which 2 cut at max_length; 1 skipped as empty; 0 skipped as overlong" in text
    assert f"{positions} response tokens in 3 shards" in text
    assert f"{size / positions:,.1f} bytes per response token, {entries / positions:.1f} tokens kept each" in text


def test_every_distribution_of_the_manifest_is_shown(fake, capsys):
    lines = shown(capsys, fake.folder).partition("\ntrust ")[0].splitlines()
    for name, numbers in ShardCache(fake.folder).manifest.statistics.items():
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        assert len(line.split()) == 1 + len(numbers)


def teachers(text):
    """name and pair -> its text in the table of teachers."""
    lines = text.split("\nteachers\n")[1].partition("\n\n")[0].splitlines()
    return {tuple(line.split()[:2]): " ".join(line.split()[2:]) for line in lines if line}


def test_presets_are_listed_with_the_range_that_the_nodes_serve(tmp_path, capsys):
    nodes = StrengthNodes(gains=(0.0, 4.0, 12.5), strengths=(0.0, 1.0, 2.5))
    fake = make_cache(tmp_path, nodes=nodes, pairs=1)
    found = teachers(shown(capsys, tmp_path))
    assert found["aligndistil", "dpo/reverse"] == "w = gain * D_t + 0.001, gain up to 12.5"
    assert found["adaptive", "reference/reference"] == "w = gain * D_t + 0.001, gain up to 12.5"
    assert found["contrastive", "dpo/reverse"] == "w = beta / kl_coef, up to 2.5"
    assert found["linear", "reference/reference"] == "w = beta / kl_coef, up to 2.5"
    assert lacks(fake.plan, TeacherSpec(gain=12.5)) is None
    assert lacks(fake.plan, TeacherSpec(gain=12.6)) is not None


def test_what_a_cache_cannot_serve_is_listed_with_the_reason(tmp_path, capsys):
    make_cache(tmp_path / "two", roles=("dpo", "reference"), pairs=1)
    found = teachers(shown(capsys, tmp_path / "two"))
    assert found["aligndistil", "dpo/reverse"] == "not served: built without the model reverse"
    assert found["linear", "reference/reference"].startswith("w = ")
    assert found["-", "dpo/reference"] == "not served: built without --pairs dpo/reference"

    make_cache(tmp_path / "three", pairs=1)
    found = teachers(shown(capsys, tmp_path / "three"))
    assert found["-", "reference/reverse"] == "not served: built without --pairs reference/reverse"


def test_the_table_of_teachers_says_what_the_reader_does(fake, capsys):
    for (name, pair), text in teachers(shown(capsys, fake.folder)).items():
        anchor, negative = pair.split("/")
        spec = TeacherSpec(anchor=anchor, negative=negative)
        assert (lacks(fake.plan, spec) is None) == (not text.startswith("not served")), name


def test_a_row_shows_every_response_token_with_its_probabilities_and_the_teachers_best(fake, capsys):
    text = shown(capsys, fake.folder, "--row", 4)
    cache = ShardCache(fake.folder)
    response, teacher = cache[4], cache.teacher([4], TeacherSpec.preset("aligndistil"))
    assert f"{response.sample_id}, chosen; {len(response.input_ids)} tokens" in text
    assert str(TeacherSpec()) in text
    lines = text.splitlines()[-response.scores.num_positions :]
    assert [int(line.split()[0]) for line in lines] == np.flatnonzero(response.loss_mask).tolist()
    words = {token_id: text for text, token_id in fake.vocabulary.items()} | {1: "\\n"}
    start = 0
    for n, (line, count) in enumerate(zip(lines, teacher.support_count, strict=True)):
        token, _, p_reference, p_teacher, distance, w, k, best, p_best = line.split()[1:10]
        assert token == words[response.input_ids[response.loss_mask][n]]
        assert float(p_reference) == pytest.approx(np.exp(response.scores.next_logprob["reference"][n]), abs=1e-4)
        assert float(distance) == pytest.approx(response.scores.l1_distance["reverse"][n], abs=1e-4)
        assert float(w) == pytest.approx(teacher.strength[n], abs=1e-3)
        assert int(k) == count
        ids, logprobs = (a[start : start + count] for a in (teacher.support_ids, teacher.logprobs))
        assert best == words[ids[np.argmax(logprobs)]]
        assert float(p_best) == pytest.approx(np.exp(logprobs.max()), abs=0.01)
        kept = response.input_ids[response.loss_mask][n] == ids
        if kept.any():
            assert float(p_teacher) == pytest.approx(np.exp(logprobs[kept][0]), abs=1e-4)
        else:
            assert p_teacher == "tail"
        start += count


def test_without_contrast_a_row_is_shown_with_a_teacher_that_the_cache_serves(tmp_path, capsys):
    make_cache(tmp_path, roles=("dpo", "reference"), pairs=1)
    assert str(TeacherSpec.preset("adaptive")) in shown(capsys, tmp_path, "--row", 0)


def test_with_no_preset_served_a_row_says_so(tmp_path, capsys):
    make_cache(tmp_path, roles=("dpo", "reference"), served=[Pair("dpo", "reference")], pairs=1)
    assert "none: the cache serves no preset" in shown(capsys, tmp_path, "--row", 0)


def test_long_tokens_and_control_characters_do_not_break_the_table(fake, tmp_path, capsys):
    odd = {("\x1b[31m\t" + "x" * 40 + str(i) if i % 2 else f"\n\r{i}"): i for i in range(fake.plan.vocabulary_size)}
    write_cache(tmp_path, fake.plan, odd, fake.responses)
    text = shown(capsys, tmp_path, "--row", 0)
    assert "\x1b" not in text
    assert "\t" not in text
    assert "\\n\\r" in text


def test_a_row_that_is_not_there_is_an_error_in_one_line(fake):
    done = run(fake.folder, "--row", 10)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: row: expected a number under 10, got 10\n")
    with pytest.raises(OptionError):
        main([str(fake.folder), "--row", "-11"])


def test_no_cache_is_exit_code_2_and_one_line(tmp_path):
    done = run(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {tmp_path}: expected a cache, found no manifest.json\n"


def test_a_begun_build_shows_its_plan_and_says_how_many_shards_are_done(tmp_path):
    fake = make_cache(tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "part-00001.arrow").unlink()
    done = run(tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {tmp_path}: expected a finished cache, found a build with 2 of 3 shards done; run it again to finish\n"
    )
    assert fake.plan.sha256[:12] in done.stdout
    assert "aligndistil  dpo/reverse" in done.stdout
    with pytest.raises(CacheMissing):
        main([str(tmp_path), "--row", "0"])


def test_a_cache_is_described_without_its_provenance_and_whatever_its_identity_holds(fake, tmp_path, capsys):
    plan = replace(fake.plan, identity={"models": {}, "options": [1, 2]})
    write_cache(tmp_path, plan, fake.vocabulary, fake.responses)
    (tmp_path / "provenance.json").unlink()
    assert "10, of which" in shown(capsys, tmp_path)


def test_long_option_lists_are_broken_at_the_width(fake, tmp_path, capsys):
    options = {f"option_{i}": "value" * 3 for i in range(30)}
    write_cache(tmp_path, replace(fake.plan, identity={"options": options}), fake.vocabulary, fake.responses)
    text = shown(capsys, tmp_path)
    assert json.dumps(options).count("option_") == text.count("option_")
