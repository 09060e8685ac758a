"""The results as Markdown. Pure functions of results.json."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.scaling.paper import Figure

ORDER = ("permutation", "window", "resume in the middle", "uses of all shards")


def page(results: Mapping[str, Any]) -> str:
    """All that was measured."""
    settings = results["settings"]
    parts = [f"`{settings['command']}`", f"{settings['machine']}; {settings['versions']}."]
    if "paper" in results:
        parts += [paper_table(name, [Figure(*line) for line in lines]) for name, lines in results["paper"].items()]
    if "shuffle" in results:
        parts.append(shuffle_table(results["shuffle"]))
    for axis, points in results.get("growth", {}).items():
        parts.append(growth_table(axis, points))
    if "reading" in results:
        parts.append(reading_table(results["reading"]))
    return "\n\n".join(parts)


def paper_table(heading: str, figures: Sequence[Figure]) -> str:
    return table([heading, "", "formula"], figures, "|---|--:|---|")


def shuffle_table(lines: Sequence[Mapping[str, Any]]) -> str:
    head = ["shards", "W", "way", "spread", "at the ends", "shards in a batch", "correlation", "at once", "arriving"]
    rows = [
        (
            f"{line['shards']:,}",
            "all" if line["window"] == line["shards"] else f"{line['window']:,}",
            line["way"] if line["window"] < line["shards"] else "permutation",
            *(f"{line[name]:.4f}" for name in ("spread", "edge_spread")),
            f"{line['distinct']:.1f}",
            f"{line['correlation']:.2f}",
            f"{line['at_once']:,.0f}",
            f"{line['arriving']:,.0f}",
        )
        for line in lines
    ]
    return table(head, rows, "|--:|--:|---|--:|--:|--:|--:|--:|--:|")


def growth_table(axis: str, points: Sequence[Mapping[str, Any]]) -> str:
    head = [axis, "shards", "manifest", "open, s", "by the clock", "bytes a row", "at its peak"]
    head += [*(f"{name}, s" for name in ORDER), "rows/s"]
    rows = [
        (
            f"{point['value']:,}",
            f"{point['shards']:,}",
            f"{point['manifest.json_bytes'] / 1e6:.1f} MB",
            f"{point['cpu_seconds']:.2f}",
            f"{point['seconds']:.2f}",
            f"{point['bytes_per_row']:.1f}",
            f"{point['peak_bytes_per_row']:.1f}",
            *(f"{point[name]:.3f}" for name in ORDER),
            f"{point['rows_per_second']:,.0f}",
        )
        for point in points
    ]
    return table(head, rows, "|" + "--:|" * len(head))


def reading_table(reading: Mapping[Any, Mapping[str, float]]) -> str:
    first = next(iter(reading.values()))["rows_per_cpu_second"]
    rows = [
        (f"{int(shards):,}", f"{rate['rows_per_cpu_second']:,.0f}", f"{rate['rows_per_cpu_second'] / first:.2f}")
        for shards, rate in reading.items()
    ]
    return table(["files", "rows a second of the processor", "of the first"], rows, "|--:|--:|--:|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], rule: str) -> str:
    return "\n".join([f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)])
