"""Hostile files that no mutation finds: bombs, claims, depth, links, pipes and devices where files belong. A table."""

import gzip
import json
import os
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import zstandard

from shards.errors import AlignDistilError
from stress.mutants.model_targets import ADAPTER, safetensors, text
from stress.mutants.targets import Target

DEEP = 100_000
PLACES = ("../../outside", "/etc/hostname", "..", "sub/../../x", "\0", "x" * 5000)


OPENED = ("manifest compact", "plan float32", "shard compact 0", "vocabulary", "config.json", "weights header")
OPENED += ("adapter_config.json", "adapter header", "made_from of a role", "made_from of a checkpoint", "log")
OPENED += ("distill_run.json", "options of a run", "partial rollout", "identity of a rollout", "samples", "pipeline")
OPENED += (".jsonl", ".jsonl.zst", ".parquet", ".arrow")
"""Targets of which something else may lie where the file belongs."""


class Taken(Exception):
    """Hostile content was taken as sound."""


def refused(work: Callable[[], object]) -> Callable[[], object]:
    """The work, which must end in one of our errors."""

    def run() -> None:
        try:
            work()
        except AlignDistilError:
            raise
        raise Taken("expected a refusal, got none")

    return run


def table(targets: dict[str, Target]) -> Iterator[tuple[str, Callable[[], object], Callable[[], object]]]:
    """(name, what puts the hostile file, what reads it)."""
    for name, content, sound in _contents():
        target = targets[name.partition(":")[0]]
        yield name, partial(_put, target, content), target.work if sound else refused(target.work)
    for name in OPENED:
        for kind, put in _NO_FILES.items():
            target = targets[name]
            work = _left_aside(target) if name == "made_from of a checkpoint" else refused(target.work)
            yield f"{name}: {kind}", partial(put, target.file), work
    yield from _paths(targets)


def _put(target: Target, content: bytes | Callable[[], bytes]) -> None:
    target.put(content() if callable(content) else content)


def _contents() -> Iterator[tuple[str, bytes | Callable[[], bytes], bool]]:
    """Target and what it is, content or what makes it, whether it may be taken."""
    deep = {"lists": b"[" * DEEP + b"]" * DEEP, "objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP}
    for name in (
        "manifest compact",
        "plan float32",
        "vocabulary",
        "distill_run.json",
        "log",
        "config.json",
        ".jsonl",
        ".json",
    ):
        for kind, content in deep.items():
            yield f"{name}: {DEEP:,} levels of {kind}", b'{"rows": ' + content + b"}", False
        yield f"{name}: a number of 100,000 digits", b'{"rows": ' + b"9" * DEEP + b"}", False
    yield "pipeline: levels", b"out: x\nsteps: " + b"[" * DEEP, False
    yield "pipeline: a bomb of aliases", _aliases(), False
    yield "pipeline: an alias inside of itself", b"out: &a [*a]\nsteps: [*a]\n", False
    yield "tokenizer: levels", b'{"version": "1.0", "model": ' + b"[" * DEEP, False
    for length in (2**63, 2**64 - 1, 2**40, 10**8, 100):
        yield f"weights header: of {length} bytes", struct.pack("<Q", length) + b"{}", True
    yield "weights header: levels", safetensors(b'{"a":' * DEEP), True
    yield ".jsonl.zst: a bomb", lambda: zstandard.compress(bytes(2**30), 1), False
    yield ".jsonl.zst: a bomb of lines", lambda: zstandard.compress(b" \n" * 2**16, 1), True
    yield ".jsonl.gz: a bomb", lambda: gzip.compress(bytes(2**28), 1), False
    for claimed in (2**62, 2**40, 2**31):
        yield f".arrow: a buffer that claims {claimed}", _claiming(claimed), False
        yield f"index compact: a buffer that claims {claimed}", _claiming(claimed), False
        yield f"shard compact 0: a buffer that claims {claimed}", _claiming(claimed), False
    yield "index compact: dictionaries", _with_dictionary(), False
    yield "shard float32 0: dictionaries", _with_dictionary(), False
    yield "shard float32 0: an extension type", _with_extension(), False
    yield ".arrow: an extension type of Python", _with_extension(), True
    yield ".arrow: dictionaries", _with_dictionary(), True


def _aliases() -> bytes:
    lines = ["out: x", "a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in zip("abcdefghi", "bcdefghij", strict=True)]
    return "\n".join([*lines, "steps: *j"]).encode()


def _claiming(claimed: int) -> bytes:
    """An Arrow file whose first compressed buffer claims so many bytes."""
    batch = pa.record_batch({"prompt": pa.array(["the cat"] * 999), "completion": pa.array([" sat"] * 999)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(batch)
    content = sink.getvalue().to_pybytes()
    at = (
        content.index(struct.pack("<Q", 4000))
        if struct.pack("<Q", 4000) in content
        else content.index(b"\x28\xb5\x2f\xfd") - 8
    )
    return content[:at] + struct.pack("<Q", claimed) + content[at + 8 :]


def _with_dictionary() -> bytes:
    table = pa.table({"prompt": pa.array(["a", "b"]).dictionary_encode(), "completion": pa.array([" c", " d"])})
    return _written(table)


def _with_extension() -> bytes:
    """A column of the extension type that unpickles its metadata where it is registered."""
    metadata = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": b"\x80\x04cos\nmkdir\n.",
    }
    fields = [pa.field("prompt", pa.string(), metadata=metadata), pa.field("completion", pa.string())]
    return _written(pa.table([["a"], [" b"]], schema=pa.schema(fields)))


def _written(found: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, found.schema) as writer:
        writer.write_table(found)
    return sink.getvalue().to_pybytes()


# ---- what is no file


def _link(to: str) -> Callable[[Path], None]:
    def put(file: Path) -> None:
        file.unlink(missing_ok=True)
        file.symlink_to(file.name if to == "itself" else to)

    return put


def _pipe(file: Path) -> None:
    file.unlink(missing_ok=True)
    os.mkfifo(file)


def _folder(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.mkdir()


_NO_FILES = {
    "a link to itself": _link("itself"),
    "a link to /dev/zero": _link("/dev/zero"),
    "a pipe": _pipe,
    "a folder": _folder,
}


# ---- names that lead out


def _paths(targets: dict[str, Target]) -> Iterator[tuple[str, Callable[[], object], Callable[[], object]]]:
    for place in PLACES:
        shown = f"{place[:20]!r}"
        for name in ("manifest compact", "plan compact", "plan float32"):
            target = targets[name]
            found = json.loads(target.seeds[0])
            found["shards"][0]["file"] = place
            yield f"{name}: a shard {shown}", partial(target.put, text(found)), refused(target.work)
        index = targets["weights index"]
        found = json.loads(index.seeds[0])
        found["weight_map"]["w"] = place
        yield f"weights index: a file {shown}", partial(index.put, text(found)), refused(index.work)
        adapter = targets["adapter_config.json"]
        config = text(ADAPTER | {"base_model_name_or_path": place})
        yield f"adapter_config.json: a base {shown}", partial(adapter.put, config), refused(adapter.work)
        for name in ("distill_run.json", "made_from of a checkpoint"):
            target = targets[name]
            record = json.loads(target.seeds[0]) | {"files": {place: 3}}
            yield f"{name}: a file {shown}", partial(target.put, text(record)), _left_aside(target)
    adapter = targets["adapter_config.json"]
    circle = text(ADAPTER | {"base_model_name_or_path": str(adapter.file.parent)})
    yield "adapter_config.json: its own base", partial(adapter.put, circle), refused(adapter.work)


def _left_aside(target: Target) -> Callable[[], object]:
    """A checkpoint whose record names other files is refused, or said to be left aside."""

    def run() -> None:
        found = target.work()
        if found is None or found[0] is not None:
            raise Taken(f"expected it to be left aside, got {found}")

    return run
