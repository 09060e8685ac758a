"""What runs leave as targets: checkpoints, logs, records, partial rollouts, pipelines, mirrors, URLs."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fake_run import OPTIONS, make_run

from precompute.rollout.file import SampleFile
from shards.pipeline.file import read_pipeline
from shards.pipeline.record import Record
from shards.places.room import MARK_FILE, parse_bytes, read_mark
from shards.places.url import is_url, parse_url
from stress.mutants.model_targets import text
from student.evaluate.win_rate import read_samples
from student.log.files import RECORD_FILE, RUN_FILE, STATE_FILE
from student.report.page import runs_page
from student.report.run import read_run
from student.report.text import report_text
from student.runs import checkpoints
from student.runs.record import read_record

IDENTITY = {**OPTIONS, "model": "cd" * 32, "seed": 0, "padding_free": True}
SIGNED = {**IDENTITY, "files": {STATE_FILE: 40, "optimizer.pt": 3}, "weights_only": False}
STUDENT = {
    "teacher": {"anchor": "dpo", "negative": "reverse", "adaptive": True, "gain": 10.0, "strength": None},
    "divergence": "reverse_kl",
    "jsd_weight": 0.5,
    "reduction": "sequence",
    "models": {"dpo": {"weights_sha256": "ab" * 32}},
}
STEPS = """out: runs/first
data: pairs.jsonl
steps:
  - name: teachers
    run: precompute.teachers
    launch: torchrun --nproc_per_node 8
    flags: {reference: REFERENCE_DIR, data: $data, out: $out/models}
  - name: build
    run: precompute.build
    flags: {models: [dpo=$out/models/dpo], data: $data, out: $out/cache, limit: 5}
"""
BOMB = "out: x\na: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
ROLLOUT = {"model": {"weights_sha256": "ab" * 32}, "data": "cd" * 32, "seed": 0, "temperature": 1.0}


def targets(ground: Path) -> Iterator[dict[str, Any]]:
    from dataclasses import asdict

    from shards import TeacherSpec

    STUDENT["teacher"] = {name: value for name, value in asdict(TeacherSpec()).items()}
    json_ = {"is_json": True, "weight": 2}
    out = ground / "out"
    checkpoint = out / "checkpoint-7"
    checkpoint.mkdir(parents=True)
    (checkpoint / STATE_FILE).write_bytes(b'{"global_step": 7, "max_steps": 9 }     '[:40].ljust(40))
    (checkpoint / "optimizer.pt").write_bytes(bytes(3))
    yield {
        "name": "distill_run.json",
        "file": checkpoint / RUN_FILE,
        "seeds": (text(SIGNED), text(SIGNED | {"files": None})),
        "work": partial(_checkpoint, out),
    } | json_
    run = ground / "run"
    make_run(run, steps=6)
    state = (run / STATE_FILE).read_bytes()
    yield {"name": "log", "file": run / STATE_FILE, "seeds": (state,), "work": partial(_report, run), "is_json": True}
    options = ground / "options"
    make_run(options, steps=3)
    yield {
        "name": "options of a run",
        "file": options / RUN_FILE,
        "seeds": (text(IDENTITY),),
        "work": partial(_report, options),
        "is_json": True,
    }
    student = ground / "student"
    student.mkdir()
    yield {
        "name": RECORD_FILE,
        "file": student / RECORD_FILE,
        "seeds": (text(STUDENT),),
        "work": partial(_record, student),
    } | json_
    yield from _rollout(ground)
    yield from _pipeline(ground)
    mirror = ground / "mirror"
    mirror.mkdir()
    mark = {"url": "s3://bucket/cache", "evict": "part-*.arrow"}
    yield {
        "name": MARK_FILE,
        "file": mirror / MARK_FILE,
        "seeds": (text(mark),),
        "work": partial(_mark, mirror),
    } | json_
    urls = (b"s3://bucket/folder/cache", b"hf://datasets/me/it@main", b"200GB", b"az://c/x y")
    yield {"name": "URL", "file": mirror / "url", "seeds": urls, "work": partial(_url, mirror / "url"), "weight": 2}


def _rollout(ground: Path) -> Iterator[dict[str, Any]]:
    folder = ground / "rollout"
    folder.mkdir()
    path = folder / "samples.jsonl"
    (folder / "samples.jsonl.identity.json").write_bytes(text(ROLLOUT))
    order = [(i, k) for i in range(3) for k in range(2)]
    rows = [{"id": i, "sample": k, "prompt": "the cat", "completion": " sat", "tokens": 2} for i, k in order]
    lines = b"".join(text(row) + b"\n" for row in rows)
    yield {
        "name": "partial rollout",
        "file": folder / "samples.jsonl.partial",
        "seeds": (lines, lines[:-20], lines[: lines.index(b"\n") + 1]),
        "work": partial(_partial, path, order),
        "is_json": True,
        "weight": 2,
    }
    other = ground / "identity"
    other.mkdir()
    (other / "samples.jsonl.partial").write_bytes(lines)
    yield {
        "name": "identity of a rollout",
        "file": other / "samples.jsonl.identity.json",
        "seeds": (text(ROLLOUT),),
        "work": partial(SampleFile, other / "samples.jsonl", ROLLOUT),
        "is_json": True,
    }
    yield {
        "name": "samples",
        "file": other / "finished.jsonl",
        "seeds": (lines,),
        "work": partial(read_samples, other / "finished.jsonl"),
        "is_json": True,
        "weight": 2,
    }


def _pipeline(ground: Path) -> Iterator[dict[str, Any]]:
    folder = ground / "pipeline"
    folder.mkdir()
    steps = folder / "steps.yaml"
    steps.write_text(STEPS)
    (sound, _) = read_pipeline(steps).steps
    yield {
        "name": "pipeline",
        "file": folder / "mutant.yaml",
        "seeds": (STEPS.encode(), BOMB.encode()),
        "work": partial(read_pipeline, folder / "mutant.yaml"),
        "weight": 1,
    }
    (folder / "REFERENCE_DIR").mkdir()
    done = {"command": {"run": sound.module, "launch": "", "flags": {"out": "x"}}, "inputs": {}, "outputs": {}}
    yield {
        "name": "record of a pipeline",
        "file": folder / "pipeline.json",
        "seeds": (text({"format": 1, "steps": {"teachers": done}}),),
        "work": partial(_steps, folder, sound),
        "is_json": True,
        "weight": 2,
    }


def _checkpoint(out: Path) -> None:
    folder = out / "checkpoint-7"
    reason = checkpoints.fault(folder)
    assert reason is None or isinstance(reason, str)
    checkpoints.is_unfinished(folder)
    checkpoints.newest_whole(out)
    checkpoints.require_checkpoint(folder, IDENTITY, 9)


def _report(folder: Path) -> None:
    run = read_run(folder, folder.name)
    shown = report_text([run, run])
    assert all(line.isprintable() for line in shown.splitlines()), shown
    if (folder / STATE_FILE).stat().st_mtime_ns // 1000 % 16 == 0:  # slow
        runs_page([run])
        assert run._repr_html_()


def _record(folder: Path) -> None:
    record = read_record(str(folder))
    assert record is not None
    str(record), json.dumps(record.to_json())


def _partial(path: Path, order: list[tuple[int, int]]) -> None:
    rows = SampleFile(path, ROLLOUT).keep(order, 2)
    assert [(row["id"], row["sample"]) for row in rows] == order[: len(rows)]


def _steps(folder: Path, step: Any) -> None:
    record = Record(folder)
    record.require_same_command(step)
    record.is_done(step)


def _mark(folder: Path) -> None:
    mark = read_mark(folder)
    assert all(isinstance(value, str) for value in mark.values()), mark


def _url(file: Path) -> None:
    name = file.read_bytes().decode(errors="surrogateescape")
    if not is_url(name):
        parse_bytes(name)
        return
    url = parse_url(name)
    parts = url.prefix.split("/") if url.prefix else []
    assert url.bucket and not {"", ".", ".."} & set(parts), url
    assert str(url).isprintable(), url
