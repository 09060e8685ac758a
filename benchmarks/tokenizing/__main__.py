"""python -m benchmarks.tokenizing: how fast data become tokens, and how fast a finished build is recognised.

Every layout at every number of rows, on all cores: our whole path, compared with the tokenizer's own encode_batch over
the same texts. Writes results.json and tokenizing.md into --out.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.command import parse, quiet
from benchmarks.machine import processor, versions
from benchmarks.tokenizing.layouts import Pair, make_tokenizer, synthetic_pairs, write_rows
from benchmarks.tokenizing.measure import recognising, tokenizing
from benchmarks.tokenizing.options import TokenizingOptions
from benchmarks.tokenizing.report import page
from precompute.data.reading import read_rows
from shards.cli.command import run_command

VERSIONS = ("transformers", "tokenizers", "numpy")
DIFFERENT_PAIRS = 4_000
"""Rows beyond these repeat the same texts; a tokenizer's own cache of words is full long before."""


def run(options: TokenizingOptions, command: str) -> dict[str, Any]:
    """Make the data, measure, write the results after every row of the table."""
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    pairs = pairs_of(options)
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer) if options.tokenizer else make_tokenizer(pairs)
    settings = asdict(options) | {"command": command, "machine": processor(), "cores": os.cpu_count()}
    results: dict[str, Any] = {"settings": settings | {"versions": versions(VERSIONS)}, "rates": [], "found": []}
    for rows in options.rows:
        for layout in options.layouts:
            data = out / f"{layout.replace(' ', '-')}-{rows}.jsonl"
            write_rows(data, layout, pairs, rows)
            repeats = options.repeats if rows <= options.longest_repeated else 1
            found = tokenizing(data, tokenizer, layout, repeats)
            data.unlink()
            results["rates"].append({"layout": layout, "rows": rows} | found)
            write(out, results)
    results["found"] = list(recognising(options, out))
    write(out, results)
    return results


def pairs_of(options: TokenizingOptions) -> list[Pair]:
    count = min(max(options.rows), DIFFERENT_PAIRS)
    if options.data is None:
        return synthetic_pairs(count, options.words, options.seed)
    rows = [row for _, row in zip(range(count), read_rows(options.data), strict=False)]
    return [(row["prompt"], row["chosen"], row["rejected"]) for _, row in rows]


def write(out: Path, results: dict[str, Any]) -> None:
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "tokenizing.md").write_text(page(results) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    options, command = parse(TokenizingOptions, "benchmarks.tokenizing", __doc__, arguments)
    quiet()
    run(options, command)
    print(f"{options.out}: results.json and tokenizing.md are written")


if __name__ == "__main__":
    run_command(main)
