"""The results as a page of Markdown. Pure functions of results.json."""

from collections.abc import Mapping
from typing import Any

from benchmarks.loading.scale_report import tables


def page(results: Mapping[str, Any]) -> str:
    settings = results["settings"]
    parts = [
        "# Loading: from the cache to the student",
        f"Written by `{settings['command']}` on {settings['machine']}; {settings['versions']}. One process, "
        "one thread, files in the page cache, medians.",
    ]
    if "facts" in results:
        parts.append(speed_text(results))
    if "scale" in results:
        parts += ["## Many shards, many rows", tables(results["scale"], settings)]
    return "\n\n".join(parts)


def speed_text(results: Mapping[str, Any]) -> str:
    facts, settings = results["facts"], results["settings"]
    return "\n\n".join(
        [
            f"{facts['rows']:,} responses, {facts['positions']:,} response positions, "
            f"{facts['entries_per_position']:.1f} kept tokens a position, V = {settings['vocabulary']:,}, "
            f"{settings['values']} values of {', '.join(settings['roles'])}; teacher {settings['teacher']}, "
            f"micro-batches of {settings['micro_batch_size']} out of {settings['global_batch_size']}. "
            f"{facts['columns_read']} of {facts['columns']} columns are read.",
            "## Read, decoded, composed, collated",
            whole_table(results),
            "By the clock, and by the processor's time, which other processes do not count in. Read amplification: "
            "rows in the record batches that are read, over the rows asked for.",
            "## Parts and floors",
            parts_table(results),
            "The parts are those of sequential reading with the first number of rows a record batch. No reader can do "
            "without the floors.",
            "## Packing",
            packing_table(results),
            "Of the columns that are read, buffer by buffer.",
            "## Bytes",
            columns_table(results["columns"]),
        ]
    )


def whole_table(results: Mapping[str, Any]) -> str:
    lines = [
        "| rows a record batch | bytes a position | read amplification | shuffled, positions/s: clock, processor | "
        "sequential: clock, processor |",
        "|--:|--:|--:|--:|--:|",
    ]
    for rows, cache in results["caches"].items():
        cells = [_both(results["whole"][f"{order}, {rows}"]) for order in ("shuffled", "sequential")]
        lines.append(
            f"| {rows} | {cache['bytes_per_position']:.0f} | {cache['amplification']:.2f} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def parts_table(results: Mapping[str, Any]) -> str:
    lines = ["| | positions/s: clock, processor | processor, seconds a million positions |", "|---|--:|--:|"]
    for group in ("parts", "floors"):
        for name, rate in results[group].items():
            label = name if group == "parts" else f"*{name}*"
            lines.append(f"| {label} | {_both(rate)} | {1e6 / rate['positions_per_cpu_second']:.2f} |")
    return "\n".join(lines)


def packing_table(results: Mapping[str, Any]) -> str:
    lines = ["| | bytes a position | positions/s decompressed: clock, processor |", "|---|--:|--:|"]
    for name, size in results["packing_bytes"].items():
        rate = results["packings"].get(name)
        lines.append(f"| {name} | {size:.0f} | {'-' if rate is None else _both(rate)} |")
    return "\n".join(lines)


def columns_table(columns: Mapping[str, float]) -> str:
    lines = ["| column | bytes a position |", "|---|--:|"]
    lines += [f"| `{name}` | {size:.2f} |" for name, size in columns.items()]
    return "\n".join([*lines, f"| all | {sum(columns.values()):.0f} |"])


def _both(rate: Mapping[str, float]) -> str:
    return f"{rate['positions_per_second']:,.0f}, {rate['positions_per_cpu_second']:,.0f}"
