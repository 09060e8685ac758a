"""Files of data as targets: lines of JSON, packed lines, tables of Arrow and Parquet."""

import gzip
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets  # noqa: F401 - read_rows imports it at its first table
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from precompute.data.reader import DataReader
from precompute.data.sources import Data
from stress.mutants.model_targets import text

PAIR = {"prompt": "the cat", "chosen": " sat on", "rejected": " ran", "score": 0.5}
TALK = {
    "prompt": [{"role": "user", "content": "hello"}],
    "chosen": [{"role": "assistant", "content": "the cat", "tool_calls": None}],
    "rejected": [{"role": "assistant", "content": "a dog"}],
    "tools": '[{"type": "function"}]',
}
MESSAGES = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the cat"}]}


def targets(ground: Path) -> Iterator[dict[str, Any]]:
    folder = ground / "data"
    folder.mkdir()
    lines = [b"".join(text(row) + b"\n" for row in (row, row, row)) for row in (PAIR, TALK, MESSAGES)]
    table = pa.Table.from_pylist([PAIR, PAIR, PAIR])
    talks = pa.Table.from_pylist([TALK, TALK])
    kinds = {
        "jsonl": (tuple(lines), 4),
        "json": ((b"[" + text(PAIR) + b"," + text(PAIR) + b"]", lines[0]), 2),
        "csv": ((b'prompt,chosen,rejected\nthe cat, sat, ran\n"a\nb",c,d\n',), 2),
        "jsonl.zst": (tuple(map(zstandard.compress, lines)), 3),
        "jsonl.gz": ((gzip.compress(lines[0], mtime=0),), 2),
        "parquet": ((_parquet(table), _parquet(talks)), 2),
        "arrow": (
            (_arrow(table, pa.ipc.new_file), _arrow(talks, pa.ipc.new_file), _arrow(table, pa.ipc.new_stream)),
            3,
        ),
    }
    for kind, (seeds, weight) in kinds.items():
        file = folder / f"mutant.{kind}"
        yield {
            "name": f".{kind}",
            "file": file,
            "seeds": seeds,
            "work": partial(_rows, file),
            "weight": weight,
            "is_json": kind in ("jsonl", "json"),
        }


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _arrow(table: pa.Table, opening: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with opening(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _rows(file: Path) -> None:
    reader = DataReader(Data.of(str(file)))
    for row in reader:
        text(row.values).decode().encode()
    for line in reader.notes():
        assert isinstance(line, str)
