"""`python -m shards.verify` with compact values: finds every changed bit of a column and every wrong code."""

import re
import shutil

import numpy as np
import pyarrow as pa
import pytest
from fake_cache import DEFAULT_PAIRS, make_cache, rewrite
from faults import (
    ROW_FAULTS,
    V,
    add_distance,
    changed,
    full_position,
    has_a_position_of_every_kind,
    partial_position,
    require_only,
    rewrite_shard,
    set_next,
)

from shards.format import schema
from shards.format.encoding import arrays, compact
from shards.verify.__main__ import verify


@pytest.fixture(scope="module")
def fakes(tmp_path_factory):
    """values -> a cache of the same rows."""
    return {
        values: make_cache(
            tmp_path_factory.mktemp("verify") / values, vocabulary_size=V, pairs=4, response_tokens=40, values=values
        )
        for values in schema.VALUES
    }


@pytest.fixture(scope="module")
def fake(fakes):
    return fakes["compact"]


@pytest.fixture
def copy(fake, tmp_path):
    return shutil.copytree(fake.folder, tmp_path / "copy")


NAMES = [column.name for column in schema.columns(schema.ROLES, DEFAULT_PAIRS, "compact")]
ROW = 2


def rows_of(batch, name):
    """The flat values of a list column, an array for each row."""
    kind = batch.column(name).type.value_type.to_pandas_dtype()
    return [np.array(values, dtype=kind) for values in batch.column(name).to_pylist()]


def with_column(batch, name, rows):
    """The batch with other values in a column: plain ones, or an array for each row."""
    at = batch.schema.get_field_index(name)
    return batch.set_column(at, batch.schema.field(at), pa.array(rows, batch.schema.field(at).type))


def flip_a_bit(batch, name):
    """The batch with the lowest bit of a column's last value changed."""
    if pa.types.is_list(batch.column(name).type):
        rows = rows_of(batch, name)
        rows[-1][-1:].view(np.uint8)[0] ^= 1
        return with_column(batch, name, rows)
    *rows, last = batch.column(name).to_pylist()
    other = last[:-1] + chr(ord(last[-1]) ^ 1) if isinstance(last, str) else type(last)(last ^ 1)
    return with_column(batch, name, [*rows, other])


@pytest.mark.parametrize("name", NAMES)
def test_rule_8_finds_a_flipped_bit_in_any_column(copy, name):
    def change(batches):
        first, (batch, metadata) = batches
        return [first, (flip_a_bit(batch, name), metadata)]

    rewrite_shard(copy, change)
    (fault,) = require_only(copy, 8)
    assert f"part-00000.arrow record batch 1 column {name}: expected crc32" in str(fault)


def test_rule_5_finds_a_flipped_byte_wherever_it_lies(copy):
    path = copy / "part-00001.arrow"
    content = bytearray(path.read_bytes())
    for at in range(len(content) // 3, len(content) - 100, len(content) // 7):
        content[at] ^= 0x40
        path.write_bytes(content)
        assert 5 in {fault.rule for fault in verify(copy)}
        content[at] ^= 0x40


def set_columns(folder, **changes):
    """Replace values in columns of row ROW, name -> function of the flat values; all checksums follow."""

    def change(batches):
        first, (batch, _) = batches
        for name, edit in changes.items():
            row, *others = rows_of(batch, name)
            batch = with_column(batch, name, [edit(row), *others])
        return [first, (batch, arrays.batch_metadata(batch, ROW))]

    rewrite_shard(folder, change)


def set_code(name, n, code):
    """A 24-bit number in its two columns."""
    low, high = code & 0xFF, code >> 8
    return {schema.low(name): lambda v: changed(v, n, low), schema.high(name): lambda v: changed(v, n, high)}


def code_of_one(response, n):
    """The code of a probability of 1 at a position."""
    unit = compact.units(response.scores.l1_distance["reverse"])[n]
    return compact.BIAS + round(1 / float(unit))


def require_fault(folder, rule, column):
    """The rules of all faults; asserts that all are in one row and that this rule finds a fault in this column."""
    faults = list(verify(folder))
    where = rf".*/part-00000\.arrow row {ROW} \('[^']+'\): "
    assert faults and all(re.match(where, str(fault)) for fault in faults), "\n".join(map(str, faults))
    wanted = [str(fault) for fault in faults if fault.rule == rule]
    found = [re.match(rf"{where}{column}: expected .*, got ", text) for text in wanted]
    assert any(found), "\n".join(map(str, faults))
    return {fault.rule for fault in faults}


LISTS = [name for name in NAMES if name not in ("sample_id", "pair_id", "chosen", "response_start")]


@pytest.mark.parametrize("name", LISTS)
def test_rule_10_finds_a_compact_column_that_is_too_short(copy, name):
    set_columns(copy, **{name: lambda values: values[:-1]})
    faults = list(verify(copy))
    assert faults and {fault.rule for fault in faults} == {10}


@pytest.mark.parametrize("count", [-1, 0, V + 1, -(2**31), 2**31 - 1])
@pytest.mark.parametrize("moved", [True, False], ids=["another has the rest", "alone"])
@pytest.mark.parametrize("values", schema.VALUES)
def test_rule_13_finds_an_illegal_count_before_anything_is_decoded(fakes, tmp_path, values, count, moved):
    folder = shutil.copytree(fakes[values].folder, tmp_path / "copy")

    def edit(counts):
        with np.errstate(over="ignore"):
            rest = (counts[0].astype(np.int64) + counts[1] - count).astype(np.int32)
        return np.array([count, rest if moved else counts[1], *counts[2:]], dtype=np.int32)

    set_columns(folder, support_count=edit)
    assert require_fault(folder, 13, "support_count") <= {10, 13}


def first_full_entry(response):
    """Of a position where all tokens are kept."""
    return full_position(response)[1].start


def bend_a_node(name, i):
    return {name: lambda values: changed(values, i, values[i] ^ 8)}


EDITS = {
    "support: order": (13, "support_ids", lambda r: set_code("support_gaps", first_full_entry(r) + 1, 0)),
    "support: V": (13, "support_ids", lambda r: set_code("support_gaps", 0, V)),
    "finite: -inf kept": (14, "reference_logprobs", lambda r: set_code("reference_codes", 0, 0)),
    "finite: next": (14, "reference_next_logprob", lambda r: set_code("reference_next_code", 0, 0)),
    "finite: no tail": (
        14,
        "reference_tail_logprob",
        lambda r: set_code("reference_tail_code", partial_position(r, kept=True), 0),
    ),
    "finite: a tail of nothing": (
        14,
        "reference_tail_logprob",
        lambda r: set_code("reference_tail_code", full_position(r)[0], 7),
    ),
    "finite: distance": (
        14,
        "l1_distance_reverse",
        lambda r: {"l1_distance_reverse": lambda v: changed(v, 0, np.nan)},
    ),
    "log-probs": (15, "reference_logprobs", lambda r: set_code("reference_codes", 0, (1 << 24) - 1)),
    "mass": (16, "reference_logprobs", lambda r: set_code("reference_codes", first_full_entry(r), 40_000)),
    "next: kept": (
        17,
        "reverse_next_logprob",
        lambda r: {"reverse_next_code_low": lambda v: changed(v, (n := partial_position(r, kept=True)), v[n] ^ 2)},
    ),
    "next: in the tail": (
        17,
        "reference_next_logprob",
        lambda r: set_code("reference_next_code", (n := partial_position(r, kept=False)), code_of_one(r, n)),
    ),
    "distance": (18, "l1_distance_reference", lambda r: {"l1_distance_reference": lambda v: changed(v, 0, v[0] + 0.3)}),
    "tail: dent": (
        19,
        "dpo_reverse_tail_logpartition",
        lambda r: bend_a_node("dpo_reverse_tail_partition_codes_high", 6 * partial_position(r, kept=True) + 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_the_rules_find_a_wrong_code(fake, copy, name):
    rule, column, edits = EDITS[name]
    set_columns(copy, **edits(fake.responses[ROW]))
    require_fault(copy, rule, column)


ENCODABLE = [name for name in ROW_FAULTS if name.split(":")[0] in ("names", "mask", "token ids", "mass", "tail")]
FAULTS = {
    name: ROW_FAULTS[name]
    for name in [*ENCODABLE, "support: order", "support: twice", "support: V", "distance: negative", "distance: over 2"]
} | {
    "next: kept": (17, "dpo_next_logprob", lambda r: set_next(r, "dpo", True, -0.3)),
    "next: in the tail": (17, "reverse_next_logprob", lambda r: set_next(r, "reverse", False, 0.6)),
    "distance: too short": (18, "l1_distance_reverse", lambda r: add_distance(r, -2e-3)),
    "distance: too long": (18, "l1_distance_reverse", lambda r: add_distance(r, 2e-3)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_rules_find_wrong_values_that_were_encoded(fake, tmp_path, name):
    rule, column, change = FAULTS[name]
    assert has_a_position_of_every_kind(fake.responses[ROW])
    rewrite(fake, tmp_path, ROW, change)
    assert require_fault(tmp_path, rule, column) == {rule}


def test_every_rule_about_rows_is_tested_():
    tested = {rule for rule, _, _ in (*EDITS.values(), *FAULTS.values())}
    assert tested | {10} == set(range(9, 20))
