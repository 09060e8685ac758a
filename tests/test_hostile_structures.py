"""Properties of what reads files, on structures that hypothesis builds: sound ones are taken, damaged ones refused."""

import json

import pyarrow as pa
import pytest

from shards import strict_json
from shards.errors import AlignDistilError
from shards.format.encoding.flatbuffer import Malformed
from shards.format.encoding.messages import require_possible
from shards.format.manifest import Manifest
from shards.modelfiles.whole import damage
from shards.pipeline.yaml_text import load_yaml

hypothesis = pytest.importorskip("hypothesis")
given, settings, some = hypothesis.given, hypothesis.settings, hypothesis.strategies
pytestmark = pytest.mark.filterwarnings("ignore:.*hypothesis.*")
FEW = settings(max_examples=40, deadline=None, database=None, derandomize=True)

texts = some.text(some.characters(exclude_categories=("Cs",)), max_size=8)
scalars = some.none() | some.booleans() | some.integers(-(2**63), 2**63 - 1) | some.floats(allow_nan=False) | texts
values = some.recursive(scalars, lambda inner: some.lists(inner) | some.dictionaries(texts, inner), max_leaves=12)
anything = values | some.integers() | some.sampled_from([float("nan"), float("inf"), 10**400, "\ud800", "\x1b[2J"])


@FEW
@given(values.filter(lambda value: value not in (float("inf"), float("-inf"))))
def test_all_json_of_finite_numbers_is_read_as_python_reads_it(value):
    text = json.dumps(value)
    if "Infinity" not in text:
        assert strict_json.loads(text) == json.loads(text)


@pytest.fixture(scope="module")
def manifest(whole_cache):
    return json.loads((whole_cache.folder / "manifest.json").read_text())


def places(value, path=()):
    """The path to every part of a JSON value."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@FEW
@given(some.data())
def test_a_manifest_with_one_part_replaced_is_refused_in_one_line(manifest, data):
    path = data.draw(some.sampled_from(list(places(manifest))))
    new = data.draw(anything)
    changed = replaced(manifest, path, new)
    if changed == manifest or not isinstance(changed, dict):
        return
    try:
        Manifest.from_json(changed, "manifest.json")
    except AlignDistilError as exc:
        assert str(exc).isprintable()
    else:  # what no build depends on
        assert path[:1] in (("statistics",), ("shards",))


fields = some.sampled_from([pa.string(), pa.int64(), pa.float32(), pa.bool_(), pa.list_(pa.string()), pa.binary()])
columns = some.lists(fields, min_size=1, max_size=3)


def arrow_file(kinds, rows, compression, opening):
    cells = {pa.string(): "the cat", pa.binary(): b"\0", pa.bool_(): True, pa.list_(pa.string()): ["a", "b"]}
    arrays = [pa.array([cells.get(kind, 7)] * rows, kind) for kind in kinds]
    batch = pa.RecordBatch.from_arrays(arrays, names=[f"c{i}" for i in range(len(arrays))])
    sink = pa.BufferOutputStream()
    with opening(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


files = some.builds(
    arrow_file,
    columns,
    some.integers(0, 3000),
    some.sampled_from([None, "zstd", "lz4"]),
    some.sampled_from([pa.ipc.new_file, pa.ipc.new_stream]),
)


@FEW
@given(files)
def test_a_sound_arrow_file_of_any_columns_is_possible(content):
    require_possible(pa.BufferReader(content))


@FEW
@given(files, some.integers(0, 2**30), some.binary(min_size=1, max_size=8))
def test_a_damaged_arrow_file_is_possible_or_malformed(content, at, damaged):
    at %= len(content)
    try:
        require_possible(pa.BufferReader(content[:at] + damaged + content[at + len(damaged) :]))
    except Malformed as exc:
        assert str(exc).startswith("expected ")


@FEW
@given(values)
def test_any_record_of_files_is_judged_in_words(tmp_path_factory, sizes):
    found = damage(tmp_path_factory.getbasetemp(), sizes)
    assert found is None or isinstance(found, str)


@FEW
@given(some.text(some.characters(exclude_categories=("Cs",)), max_size=40))
def test_any_text_is_yaml_or_refused(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(text, encoding="utf-8", newline="")
    try:
        load_yaml(file)
    except AlignDistilError as exc:
        assert str(exc).isprintable()
