"""The results as a page of Markdown. Pure functions of results.json."""

from collections.abc import Mapping
from typing import Any

GOAL = 0.8
"""The goal, relative to the rate of the tokenizer's own encode_batch."""


def page(results: Mapping[str, Any]) -> str:
    settings = results["settings"]
    return "\n\n".join(
        [
            "# Tokenising: rows a second, beside the tokenizer alone",
            f"Written by `{settings['command']}` on {settings['machine']}, {settings['cores']} cores; "
            f"{settings['versions']}. Medians of {settings['repeats']} where there are at most "
            f"{settings['longest_repeated']:,} rows.",
            rates_table(results),
            "Ours reads the file, renders, tokenises, finds where responses start, hashes and keeps the rows. "
            "encode_batch is given the same texts in the same batches; reading and rendering do not count for it. "
            "Hashing is what a build does to see whether it has been done.",
            "## Already built",
            found_table(results),
            "A finished build of tiny models, asked for again in a process that has its libraries loaded: seconds in "
            "all, and of the parts that it cannot do without.",
        ]
    )


def rates_table(results: Mapping[str, Any]) -> str:
    lines = [
        "| layout | rows | texts | tokens | ours, rows/s | encode_batch, rows/s | clock, CPU | hashing, rows/s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in results["rates"]:
        ours, alone, hashing = (row["rows"] / row[name] for name in ("load_corpus", "encode_batch", "rows_sha256"))
        lines.append(
            f"| {row['layout']} | {row['rows']:,} | {row['texts']:,} | {row['tokens']:,} | {ours:,.0f} | {alone:,.0f} "
            f"| {ratio(row):.2f}, {ratio(row, '_cpu'):.2f} | {hashing:,.0f} |"
        )
    return "\n".join(lines)


def found_table(results: Mapping[str, Any]) -> str:
    lines = [
        "| rows | already built, s | hashing rows, s | hashing models, s | loading tokenizers, s |",
        "|--:|--:|--:|--:|--:|",
    ]
    parts = ("build", "rows_sha256", "models", "tokenizers")
    for row in results["found"]:
        lines.append(f"| {row['rows']:,} | " + " | ".join(f"{row[part]:.3f}" for part in parts) + " |")
    return "\n".join(lines)


def ratio(row: Mapping[str, float], unit: str = "") -> float:
    """Our rate over encode_batch's, by the clock; "_cpu": by seconds of the processor, all cores together."""
    return row[f"encode_batch{unit}"] / row[f"load_corpus{unit}"]
