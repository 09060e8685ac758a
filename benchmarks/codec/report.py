"""The results as a page of Markdown. Pure functions of results.json."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

STAGES = "at the reference / half way / nearly there"
Row = Mapping[str, Any]


def page(results: Mapping[str, Any]) -> str:
    settings = results["settings"]
    parts = [
        "# The codec: bytes, errors and seconds of cached log-probs",
        f"Written by `{settings['command']}` on {settings['machine']}; {settings['versions']}. {READING}",
    ]
    for name, trio in results["trios"].items():
        size = trio["sizes"]
        parts += [
            f"## Trio {name}",
            f"{size['positions']:,} positions, V = {size['vocabulary_size']:,}, a mean of {size['mean']:.0f} tokens.",
            codec_table(trio["codecs"]),
            *left_out(trio["left_out"], settings["distillkit"]),
        ]
    parts += ["## Where the bytes go", size_table(results)]
    return "\n\n".join(parts) + "\n"


def codec_table(rows: Sequence[Row]) -> str:
    heads = ["", "tokens", "bytes: ids and log-probs", "by magnitude", "with all else"]
    heads += ["error of a log-prob, nats: mean", "worst", "worst with p > 0.001", f"angle, {STAGES}"]
    heads += ["worse than exact values by", "decoding, s a million"]
    lines = [f"| {' | '.join(heads)} |", "|---|--:|--:|--:|--:|--:|--:|--:|---|--:|--:|"]
    for row in rows:
        angle = " / ".join(f"{degrees:.2f}°" for degrees in row["angle"])
        cells = [row["name"], f"{row['mean']:.0f}", f"{row['kept_bytes']:.0f}"]
        cells += ["" if row["magnitude_bytes"] is None else f"{row['magnitude_bytes']:.0f}", f"{row['bytes']:.0f}"]
        cells += [f"{row[error]:.1e}" for error in ("mean_error", "worst", "worst_likely")]
        cells += [angle, f"{row['excess']:+.2f}°", f"{row['seconds']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def left_out(names: Sequence[str], distillkit: str | None) -> Iterable[str]:
    if names:
        yield f"Left out, since they cannot hold this vocabulary or keep more than half of it: {'; '.join(names)}."
    if distillkit is None:
        yield "DistillKit's codec is left out: no checkout was given (`--distillkit`)."


def size_table(results: Mapping[str, Any]) -> str:
    """Bytes a position of compact values, of every trio and of synthetic scores."""
    sizes = {name: trio["sizes"] for name, trio in results["trios"].items()} | {"synthetic": results["synthetic"]}
    heads = [f"{name}, V = {size['vocabulary_size']:,}" for name, size in sizes.items()]
    lines = [f"| | {' | '.join(heads)} |", f"|---{'|--:' * len(heads)}|"]
    for group in results["synthetic"]["groups"]:
        lines.append(_numbers(group, [size["groups"][group] for size in sizes.values()]))
    lines.append(_numbers("all", [sum(size["groups"].values()) for size in sizes.values()]))
    lines.append(_numbers("*ids, were any set as likely*", [size["any_set"] for size in sizes.values()]))
    return "\n".join(lines)


def _numbers(name: str, values: Iterable[float]) -> str:
    return f"| {name} | {' | '.join(f'{value:.1f}' for value in values)} |"


READING = """\
One thread, the processor's seconds.

* **bytes** a position, every array in zstd, level 3: of the kept ids and the three models' log-probs on them; and with
  all else that a cache holds of a position (D_t, counts, next tokens, tails), stored as compact values are, beside
  float32 values as these are.
* **by magnitude**: bytes of the former that an ideal coder takes which knows how often a number of so many bits comes,
  for ids and each model, and stores the bits below a number's first as they are.
* **angle**: as benchmarks.fidelity has it, between the gradients of the sparse loss and the dense one of live models;
  the worst of the default teacher's gains 2, 10 and 20. Ragged supports have a mean of that many tokens, the others
  (k = ..) equally many everywhere, by the same score, so **worse than exact values by** compares with exact log-probs
  on the same tokens: the worst of gains and stages.
* **decoding** includes zstd's work and ends at ids and float32 log-probs of three models in memory; checksums, tails
  and the teacher are not in it."""
