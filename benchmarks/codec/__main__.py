"""python -m benchmarks.codec: our compact values compared with other ways to store the same log-probs.

Measures bytes, errors, the gradient's angle and the seconds to decode, on the log-probs of trios of models (default: a
small one that it makes), and bytes at a large vocabulary. Writes results.json and codec.md into --out.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.codec.codecs import all_codecs
from benchmarks.codec.distillkit import distillkit_codecs
from benchmarks.codec.measure import measure, supported
from benchmarks.codec.options import CodecOptions
from benchmarks.codec.report import page
from benchmarks.codec.sizes import any_set, groups, synthetic
from benchmarks.command import parse, quiet
from benchmarks.fidelity.dense import load_roles, read_rows, score
from benchmarks.fidelity.options import trios_or_toy
from benchmarks.machine import processor, versions
from shards.cli.command import run_command
from shards.format.schema import Role
from shards.format.scores import Scores

VERSIONS = ("numpy", "pyarrow", "zstandard", "torch")


def run(options: CodecOptions, command: str) -> dict[str, Any]:
    """All measurements of all trios; results.json is written after each. Raises AlignDistilError."""
    torch.set_num_threads(1)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    trios, data = trios_or_toy(options.folders, options.data, out)
    settings = {**asdict(options), "command": command, "machine": processor(), "versions": versions(VERSIONS)}
    large = synthetic(options.vocabulary, options.synthetic_rows, options.top_k)
    results: dict[str, Any] = {
        "settings": settings,
        "synthetic": sizes(large, options.vocabulary),
        "trios": {},
    }
    for name, folders in trios.items():
        results["trios"][name] = measure_trio(folders, data, options)
        (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "codec.md").write_text(page(results))
    return results


def measure_trio(folders: Mapping[Role, Path], data: str, options: CodecOptions) -> dict[str, Any]:
    rows = read_rows(folders, data, rows=options.rows, max_length=options.max_length)
    dense = score(load_roles(folders, "float32"), rows, options.positions)
    top_k = min(options.top_k, dense.vocabulary_size // 4)
    codecs = all_codecs(top_k)
    if options.distillkit is not None:
        codecs += distillkit_codecs(Path(options.distillkit), dense.vocabulary_size)
    return {
        "codecs": measure(dense, codecs, top_k, options.repeats),
        "left_out": [codec.name for codec in codecs if not codec.serves(dense.vocabulary_size)],
        "sizes": sizes(supported(dense, None, top_k), dense.vocabulary_size),
    }


def sizes(scores: Scores, vocabulary_size: int) -> dict[str, Any]:
    """Where the bytes of compact values go."""
    return {
        "vocabulary_size": vocabulary_size,
        "positions": scores.num_positions,
        "mean": scores.num_entries / scores.num_positions,
        "groups": groups(scores, vocabulary_size),
        "any_set": any_set(scores, vocabulary_size),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    options, command = parse(CodecOptions, "benchmarks.codec", __doc__, arguments)
    quiet()
    run(options, command)
    print(f"{options.out}: results.json and codec.md are written")


if __name__ == "__main__":
    run_command(main)
