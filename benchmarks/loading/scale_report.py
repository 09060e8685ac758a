"""Tables of Markdown on what grows with shards and rows, with the goals. Pure functions of results.json."""

from collections.abc import Mapping
from typing import Any

READING_GOAL = 0.9
OPENING_SECONDS_PER_MILLION, OPENING_BYTES = 1.0, 64

Results = Mapping[str, Any]


def tables(results: Results, settings: Results) -> str:
    return "\n\n".join(
        [
            f"{settings['shard_rows']:,} responses of {settings['length']} tokens (mean) in ever more shards, read "
            f"shuffled {settings['global_batch_size']} at a time, from the file to the tensors of micro-batches:",
            reading_table(results["reading"]),
            "Shards of one short response, milliseconds of the processor for each shard:",
            checking_table(results["checking"]),
            "Opening, up to the first rows of a shuffled epoch, in a process of its own; the shards are empty files:",
            opening_table(results["opening"]),
            "\n".join(goals(results)),
        ]
    )


def reading_table(reading: Results) -> str:
    first = next(iter(reading))
    lines = ["| shards | rows/s: clock, processor | of those at {}: clock, processor |", "|--:|--:|--:|"]
    lines[0] = lines[0].format(first)
    for shards, rate in reading.items():
        shares = [rate[name] / reading[first][name] for name in ("rows_per_second", "rows_per_cpu_second")]
        lines.append(
            f"| {int(shards):,} | {rate['rows_per_second']:,.0f}, {rate['rows_per_cpu_second']:,.0f} | "
            f"{shares[0]:.2f}, {shares[1]:.2f} |"
        )
    return "\n".join(lines)


def checking_table(checking: Results) -> str:
    lines = ["| shards | verify | read back and finish | open |", "|--:|--:|--:|--:|"]
    for shards, seconds in checking.items():
        cells = (f"{1e3 * seconds[name] / int(shards):.3f}" for name in ("verify", "finish", "open"))
        lines.append(f"| {int(shards):,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def opening_table(opening: Results) -> str:
    lines = [
        "| rows | shards | seconds: clock, processor | bytes a row: on disk | in memory | at its peak |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for rows, found in opening.items():
        sizes = (f"{found[name]:.1f}" for name in ("disk_bytes_per_row", "bytes_per_row", "peak_bytes_per_row"))
        seconds = f"{found['seconds']:.2f}, {found['cpu_seconds']:.2f}"
        lines.append(f"| {int(rows):,} | {found['shards']:,} | {seconds} | {' | '.join(sizes)} |")
    return "\n".join(lines)


def goals(results: Results) -> list[str]:
    """A line for each goal: the result, and the goal."""
    return [
        f"* {what}: {figure:.3g}; asked for {asked}, {'reached' if holds else 'missed'}."
        for what, figure, asked, holds in figures(results)
    ]


def figures(results: Results) -> list[tuple[str, float, str, bool]]:
    """(what, figure, goal, whether it holds)."""
    reading, opening = results["reading"], results["opening"]
    (first, *_, last), rows = reading, list(opening)[-1]
    share = reading[last]["rows_per_cpu_second"] / reading[first]["rows_per_cpu_second"]
    seconds, size = opening[rows]["seconds"] / int(rows) * 1e6, opening[rows]["bytes_per_row"]
    return [
        (f"rows a second at {int(last):,} shards over those at {first}", share, "0.9 or more", share >= READING_GOAL),
        (
            f"seconds to open a million rows, at {int(rows):,}",
            seconds,
            "1 or less",
            seconds <= OPENING_SECONDS_PER_MILLION,
        ),
        (f"bytes a row in memory, at {int(rows):,}", size, "64 or less", size <= OPENING_BYTES),
    ]
