"""Wrong but well-formed content: the writer never writes it, and a reader never gives it out; both say where it is."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_cache import index_of, make_cache, rewrite, with_scores
from faults import ROW_FAULTS, V, has_a_position_of_every_kind
from test_verify_compact import EDITS, FAULTS, set_columns

from shards import ShardCache, TeacherSpec
from shards.errors import CacheDamaged, OptionError, WrongValues
from shards.format import schema
from shards.format.content import screen
from shards.format.encoding.selection import Selection
from shards.format.index import read_index
from shards.format.writer import write_index, write_shard
from student.data.responses import CachedResponses

ROW = 2
LEFT_TO_VERIFY = ("mass", "next", "distance: too", "tail")
"""Faults, by the beginnings of their names, that a reader cannot see at little cost."""
READ = {name: fault for name, fault in ROW_FAULTS.items() if not name.startswith(LEFT_TO_VERIFY)}
NOT_FOR_STUDENTS = ("sample_id", "pair_id", "chosen", "response_start", "_next_logprob")
STUDENT = {n: f for n, f in READ.items() if not f[1].endswith(NOT_FOR_STUDENTS) and n != "mask: before start"}


@pytest.fixture(scope="module")
def fakes(tmp_path_factory):
    """values -> a cache of the same rows."""
    folder = tmp_path_factory.mktemp("content")
    fakes = {
        values: make_cache(folder / values, vocabulary_size=V, pairs=2, response_tokens=40, values=values)
        for values in schema.VALUES
    }
    assert has_a_position_of_every_kind(fakes["float32"].responses[ROW])
    return fakes


def readers(folder):
    """The ways in which values of a cache are read."""
    cache = ShardCache(folder)
    everything = Selection.everything(cache.plan)
    yield lambda: cache[ROW]
    yield lambda: cache.read_joined(range(len(cache)), everything)


def require_refused(read, folder, column):
    with pytest.raises(CacheDamaged) as error:
        read()
    where = rf"{re.escape(str(folder))}/part-00000\.arrow row {ROW} \('[^']*'\): "
    assert re.fullmatch(rf"{where}{column}: expected .*, got .*", str(error.value)), error.value


def student_reads(folder):
    data = CachedResponses([folder], train_on="both").for_teacher(TeacherSpec.preset("aligndistil"))
    return lambda: data.scores(range(len(data)))


@pytest.mark.parametrize("name", READ)
def test_a_reader_refuses_a_value_that_no_row_may_hold(fakes, tmp_path, name):
    _, column, change = READ[name]
    rewrite(fakes["float32"], tmp_path, ROW, change)
    for read in readers(tmp_path):
        require_refused(read, tmp_path, column)
    if name in STUDENT:
        require_refused(student_reads(tmp_path), tmp_path, column)


@pytest.mark.parametrize("name", ["token ids: V", "names: another kind", "mask: start beyond", "log-probs"])
def test_a_notebook_is_shown_no_value_that_no_row_may_hold(fakes, tmp_path, name):
    _, column, change = READ[name]
    rewrite(fakes["float32"], tmp_path, ROW, change)
    require_refused(lambda: ShardCache(tmp_path).to_polars([column]), tmp_path, column)


@pytest.mark.parametrize(
    ("column", "value", "expected"), [("pair_id", -1, "0"), ("num_positions", 0, "1"), ("num_tokens", 1, r"\d+")]
)
def test_an_index_with_a_value_that_no_row_may_have_is_refused(fakes, tmp_path, column, value, expected):
    fake, folder = fakes["float32"], shutil.copytree(fakes["float32"].folder, tmp_path / "copy")
    index = index_of(fake.responses)
    getattr(index, column)[ROW] = value
    plan = replace(fake.plan, index_sha256=write_index(folder, index))
    with pytest.raises(
        CacheDamaged, match=rf"index.arrow row {ROW}: {column}: expected {expected} or more, got {value}$"
    ):
        read_index(folder, plan)


COMPACT = {name: fault for name, fault in FAULTS.items() if name in READ}


@pytest.mark.parametrize("name", COMPACT)
def test_a_reader_of_compact_values_refuses_it_too(fakes, tmp_path, name):
    _, column, change = COMPACT[name]
    rewrite(fakes["compact"], tmp_path, ROW, change)
    for read in readers(tmp_path):
        require_refused(read, tmp_path, column)
    if name in STUDENT:
        require_refused(student_reads(tmp_path), tmp_path, column)


CODES = {name: edit for name, edit in EDITS.items() if not name.startswith((*LEFT_TO_VERIFY, "distance"))}


@pytest.mark.parametrize("name", CODES)
def test_a_reader_refuses_codes_of_values_that_no_row_may_hold(fakes, tmp_path, name):
    _, column, edits = CODES[name]
    column = rf"\w+_{column.split('_', 1)[1]}"  # other roles are stored as differences from this one
    folder = shutil.copytree(fakes["compact"].folder, tmp_path / "copy")
    set_columns(folder, **edits(fakes["compact"].responses[ROW]))
    for read in readers(folder):
        require_refused(read, folder, column)
    if not column.endswith(NOT_FOR_STUDENTS):
        require_refused(student_reads(folder), folder, column)


@pytest.mark.parametrize("values", schema.VALUES)
@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_a_reader_refuses_a_row_whose_mass_is_wrong_throughout(fakes, tmp_path, values, factor):
    def change(response):
        moved = {role: np.minimum(v + np.log(factor), 0) for role, v in response.scores.logprobs.items()}
        return with_scores(response, logprobs=moved)

    rewrite(fakes[values], tmp_path, ROW, change)
    require_refused(lambda: ShardCache(tmp_path)[ROW], tmp_path, "dpo_logprobs")


def test_what_a_reader_does_not_read_it_does_not_judge(fakes, tmp_path):
    """A student trains from what it reads; `verify` is for the rest."""
    rewrite(fakes["float32"], tmp_path, ROW, lambda r: replace(r, sample_id="x"))
    assert student_reads(tmp_path)().num_positions > 0


@pytest.mark.parametrize("values", schema.VALUES)
@pytest.mark.parametrize("name", ROW_FAULTS)
def test_the_writer_refuses_every_value_that_verify_would_find(fakes, tmp_path, values, name):
    _, column, change = ROW_FAULTS[name]
    responses, plan = list(fakes[values].responses), fakes[values].plan
    responses[ROW] = change(responses[ROW])
    shard = plan.shards[0]
    with pytest.raises(WrongValues) as error:
        write_shard(tmp_path, shard, plan, responses[: shard.rows])
    where = rf"{re.escape(str(tmp_path / shard.file))} row {ROW} \('[^']*'\): {column}: expected .*, got .*"
    assert re.fullmatch(where, str(error.value)), error.value
    assert list(tmp_path.iterdir()) == []


def test_the_writer_names_the_row_of_a_value_without_a_code(fakes, tmp_path):
    """Far below any log-prob of a model, and right for float32 values."""
    plan = fakes["compact"].plan
    response = fakes["compact"].responses[0]
    nodes = {p: np.where(np.isneginf(v), v, 1e5) for p, v in response.scores.tail_logpartition.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shards.format.writer.require_sound", lambda *given: None)
        with pytest.raises(
            OptionError, match=rf"^{response.sample_id}: values: expected .*build with --values float32$"
        ):
            write_shard(tmp_path, plan.shards[0], plan, [with_scores(response, tail_logpartition=nodes)])


@pytest.mark.parametrize("values", schema.VALUES)
def test_sound_rows_pass_without_a_second_look(fakes, monkeypatch, values):
    monkeypatch.setattr(ShardCache, "_refuse", lambda *given: pytest.fail("a check saw a fault in a sound row"))
    folder = Path(fakes[values].folder)
    for read in (*readers(folder), student_reads(folder)):
        read()


def test_every_check_of_a_reader_has_the_rules_word_behind_it(fakes, monkeypatch):
    """A check that sees what the rules do not lets the row pass: they are the law."""
    monkeypatch.setattr(screen, "wrong_scores", lambda *given: True)
    assert ShardCache(fakes["float32"].folder)[ROW].scores.num_positions > 0
