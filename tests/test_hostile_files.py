"""What a hostile file could do, and does not: each was once a crash, a hang, a blow-up of memory or an escape."""

import json
import os
import pickle
import shutil
import struct
from types import SimpleNamespace

import pyarrow as pa
import pytest
from test_training import arguments, recipe
from tiny import nudged, save

from precompute.data.files import file_rows
from precompute.models.made_from import require_same_inputs
from shards import strict_json
from shards.errors import MAX_CHARACTERS, AlignDistilError, CacheDamaged, DataError, ModelError, OptionError
from shards.files import read_regular
from shards.format.encoding.flatbuffer import Malformed
from shards.format.encoding.messages import require_possible
from shards.format.manifest import read_vocabulary
from shards.modelfiles.find import resolve
from shards.modelfiles.folder import _tensor_bytes
from shards.modelfiles.whole import damage
from shards.pipeline.yaml_text import load_yaml
from shards.places.room import parse_bytes, read_mark
from shards.places.url import parse_url
from student.train.__main__ import train


@pytest.mark.parametrize("kind", [CacheDamaged, DataError, OptionError])
def test_a_message_is_one_short_line_whatever_a_file_made_it_say(kind):
    text = str(kind(f"file: got \x1b]0;owned\x07 \u202e and\n{'x' * 9999}\ud800 at its end"))
    assert text.isprintable() and len(text) <= MAX_CHARACTERS
    assert text.startswith("file: got \\x1b]0;owned") and text.endswith("\\ud800 at its end")
    assert str(pickle.loads(pickle.dumps(kind("a\nb")))) == "a b"  # from a loader's worker


@pytest.mark.parametrize(
    "text",
    [
        *('{"a": 1, "a": 2}', '{"a": NaN}', '{"a": 1e999}', '"\\ud800"', '{"a": ' + "9" * 400 + "}", "9" * 5000),
        *("[" * 100_000 + "]" * 100_000, '{"a":' * 102 + "1" + "}" * 102, "[" * 102 + "]" * 102, "\ufeff{}", "", "{"),
    ],
    ids=lambda text: text[:12],
)
def test_a_text_of_json_has_one_meaning_and_bounds(text):
    with pytest.raises(ValueError):
        strict_json.loads(text)


def test_sound_json_is_read_as_ever():
    value = {"a": [1, -(2**63), 2**63 - 1, 0.5, None, True, "\U0001f600 é"], "b": {"": {}}, "c": [[[]]]}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False).encode()):
        assert strict_json.loads(text) == value
    assert strict_json.loads("[NaN, 1e999]", constants=True)[1] == float("inf")
    assert strict_json.loads("9" * 30, large=True) == int("9" * 30)


@pytest.mark.timeout(20)
def test_only_a_file_is_read_as_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(OSError):
            read_regular(tmp_path / place, 10)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match="expected at most 10 bytes"):
        read_regular(tmp_path / "sparse", 10)


def model(folder, **files):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_the_index_of_a_models_weights_names_its_own_files_only(tmp_path):
    folder = model(tmp_path / "m", **{"model-1.safetensors": b""})
    for name in ("../model-2.safetensors", "/tmp/model.safetensors", "model-1.bin", 3, None):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
        with pytest.raises(ModelError, match=r"index\.json: expected"):
            resolve(str(folder))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "model-1.safetensors"}}))
    assert resolve(str(folder)).path == folder


def test_an_adapter_that_is_its_own_base_is_refused(tmp_path):
    folder = model(tmp_path / "a", **{"adapter_model.safetensors": b""})
    for base in (str(folder), "x" * 5000, "a\0b"):
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))
        with pytest.raises(ModelError):
            resolve(str(folder))


def test_sizes_of_tensors_are_taken_from_headers_that_can_be(tmp_path):
    header = b'{"w": {"data_offsets": [0, 8]}, "v": {"data_offsets": [0, 1e30]}, "u": {"data_offsets": [9, 0]}}'
    contents = [struct.pack("<Q", length) + header for length in (len(header), 2**63, 2**64 - 1, 10**8)]
    for content in (*contents, struct.pack("<Q", 2) + b"[]", b"", b"\0"):
        model(tmp_path / "m", **{"model.safetensors": content})
        assert all(0 <= size <= len(content) for size in _tensor_bytes(tmp_path / "m").values())


def test_a_record_of_files_leads_nowhere_else(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").write_bytes(b"abc")
    for sizes in ({"../out": 3}, {str(tmp_path / "out"): 3}, {"x" * 999: 3}, {"in": "3"}, {"\0": 3}, [1], 7, "ab"):
        assert damage(tmp_path / "in", sizes).startswith("got ")


def test_a_few_aliases_do_not_stand_for_a_memory_full(tmp_path):
    file = tmp_path / "steps.yaml"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    for text in ("\n".join(lines), "a: &a [*a]", "[" * 500, "a: [" * 2**19):
        file.write_text(text)
        with pytest.raises(OptionError):
            load_yaml(file)
    file.write_text("a: &a [x, y]\nb: *a\n")
    assert load_yaml(file) == {"a": ["x", "y"], "b": ["x", "y"]}


def test_what_files_say_of_places_and_sizes_is_text(tmp_path):
    (tmp_path / "mirror.json").write_text('{"url": ["s3://a/b"], "evict": 3}')
    assert read_mark(tmp_path) == {}
    (tmp_path / "vocabulary.json").write_text('{"a": [0]}')
    with pytest.raises(CacheDamaged, match="expected a number for each token"):
        read_vocabulary(tmp_path, SimpleNamespace(files=None, plan=SimpleNamespace(identity={})))
    with pytest.raises(OptionError):
        parse_bytes("9" * 400 + "GB")
    with pytest.raises(OptionError, match="printable"):
        parse_url("s3://bucket/a\x1b[31m")
    with pytest.raises(CacheDamaged, match="expected data as an object"):
        require_same_inputs(
            {"data": 3}, {"role": "dpo", "direction": "", "options": {}, "training": {}, "data": {}}, "x"
        )


def claiming(claimed):
    """An Arrow file of one compressed record batch, whose first buffer claims so many bytes."""
    batch = pa.record_batch({"prompt": pa.array(["the cat"] * 999), "completion": pa.array([" sat"] * 999)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(batch)
    content = sink.getvalue().to_pybytes()
    at = content.index(b"\x28\xb5\x2f\xfd") - 8
    return content[:at] + struct.pack("<Q", claimed) + content[at + 8 :]


@pytest.mark.parametrize("claimed", [2**62, 2**40, 2**31])
def test_arrow_allocates_nothing_that_a_file_cannot_have(tmp_path, claimed):
    with pytest.raises(Malformed):
        require_possible(pa.BufferReader(claiming(claimed)))
    (tmp_path / "rows.arrow").write_bytes(claiming(claimed))
    with pytest.raises(DataError):
        list(file_rows(tmp_path / "rows.arrow"))


@pytest.mark.parametrize("at", [0, 4, 8, 12, 16, 24, 40])
def test_a_stream_that_claims_more_than_it_has_is_refused(tmp_path, at):
    table = pa.table({"prompt": ["a"], "completion": [" b"]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content = sink.getvalue().to_pybytes()
    (tmp_path / "rows.arrow").write_bytes(content[:at] + struct.pack("<i", 2**31 - 1) + content[at + 4 :])
    with pytest.raises(DataError):
        list(file_rows(tmp_path / "rows.arrow"))


def test_a_line_has_an_end(tmp_path, monkeypatch):
    import zstandard

    monkeypatch.setattr("precompute.data.text_files.MAX_LINE_BYTES", 2**20)
    (tmp_path / "bomb.jsonl.zst").write_bytes(zstandard.compress(bytes(2**26), 19))
    (tmp_path / "plain.jsonl").write_bytes(bytes(2**21))
    for name in ("bomb.jsonl.zst", "plain.jsonl"):
        with pytest.raises(DataError, match="line 1: expected at most 1,048,576 bytes, got more"):
            list(file_rows(tmp_path / name))


class Mark:
    """What leaves a folder behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def begun(sparse_cache, trio, tmp_path_factory):
    """A run with a checkpoint after its first step, and its settings."""
    student = save(nudged(trio["reference"], 7, 0.1), tmp_path_factory.mktemp("student"))
    settings = recipe(global_batch_size=8, per_device_train_batch_size=8, max_steps=2, save_steps=1)
    out = tmp_path_factory.mktemp("begun")
    train(arguments(sparse_cache, student, out, **settings))
    return lambda folder, **more: arguments(sparse_cache, student, folder, **settings | more), out


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_poisoned_pickle_in_a_checkpoint_is_never_opened(begun, tmp_path, name):
    """Of the same size, so that the record of the checkpoint holds."""
    options, out = begun
    run = shutil.copytree(out, tmp_path / "run")
    file = run / "checkpoint-1" / name
    file.write_bytes(pickle.dumps(Mark(tmp_path / "mark"), protocol=2).ljust(file.stat().st_size, b"\0"))
    try:
        train(options(run, resume_from_checkpoint=str(run / "checkpoint-1")))
    except AlignDistilError as exc:
        assert name != "training_args.bin"  # nobody reads this one
        assert "a pickle of more than tensors" in str(exc)
    else:
        assert name == "training_args.bin"
    assert not (tmp_path / "mark").exists()


def test_weights_of_a_checkpoint_are_safetensors_only(begun, tmp_path):
    options, out = begun
    run = shutil.copytree(out, tmp_path / "run")
    folder = run / "checkpoint-1"
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    record = folder / "distill_run.json"
    record.write_text(record.read_text().replace("model.safetensors", "pytorch_model.bin"))
    with pytest.raises(CacheDamaged, match=r"safetensors only, found pytorch_model\.bin"):
        train(options(run, resume_from_checkpoint=str(folder)))
