"""Writes the page docs/fidelity.md from results.json. Pure functions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.fidelity.learned import learned_lines
from benchmarks.online.report import section

GOALS = {"0.1": (0.25, 0.006), "0.25": (0.8, 0.01)}
"""Name of a trio -> the goal: largest angle in degrees and deficit, at every stage and gain 2 to 20."""
DTYPE_GOAL = ("0.1", 2.0)
"""Name of a trio, and the largest angle of float16, support and codec that was asked for, degrees."""
DTYPE_NAMES = {
    "bfloat16": "bfloat16",
    "float16": "float16",
    "tf32": "float32, TF32 products (emulated)",
    "float32": "float32",
}
STAGES = "at the reference / half way / nearly there"
Row = Mapping[str, Any]


def page(results: Mapping[str, Any], pictures: Mapping[str, Mapping[str, str]]) -> str:
    """All sections; pictures: name of a trio -> frontier, online -> its path, as seen from the page."""
    parts = [INTRODUCTION]
    for name, trio in results["trios"].items():
        parts.append(trio_section(name, trio, pictures.get(name, {})))
    return "\n".join(parts)


def trio_section(name: str, trio: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    facts = trio["facts"]
    picture = pictures.get("frontier")
    sections: dict[tuple[str, ...], tuple[str, Callable[[], list[str]]]] = {
        ("teachers", "presets"): (
            f"Every teacher, a mean of {facts['top_k']} tokens, compact values",
            lambda: [teachers_table([*trio["teachers"], *trio["presets"]])],
        ),
        ("frontier",): (
            "Angle against bytes",
            lambda: [
                positions_line(trio["frontier"][0]["positions"]),
                "",
                *([f"![worst angle and deficit against bytes]({picture})", ""] if picture else []),
                frontier_table(trio["frontier"]),
                "",
                *goal_lines(name, trio["frontier"]),
            ],
        ),
        ("between",): ("Strengths between nodes", lambda: [between_table(trio["between"])]),
        ("divergences", "entropy"): (
            "Divergences and entropy",
            lambda: [teachers_table([*trio["divergences"], *trio["entropy"]])],
        ),
        ("dtypes",): ("Dtype of the bodies", lambda: dtype_lines(name, trio["dtypes"], facts["top_k"])),
        ("parameters",): ("Over the student's parameters", lambda: [parameters_table(trio["parameters"])]),
        ("student",): ("The student in half precision", lambda: [STUDENT, "", student_table(trio["student"])]),
        ("learned",): ("The learned strength", lambda: learned_lines(trio["learned"])),
    }
    lines = [f"## Trio {name}", "", *fact_lines(trio), ""]
    for tables, (title, body) in sections.items():
        if all(trio.get(table) for table in tables):
            lines += [f"### {title}", "", *body(), ""]
        elif reasons := [trio["left_out"][table] for table in tables if table in trio["left_out"]]:
            lines += [f"### {title}", "", f"Not measured: {'; '.join(reasons)}.", ""]
    if trio.get("online"):
        lines += [section(trio["online"], pictures.get("online"), heading="###")]
    elif "online" in trio["left_out"]:
        lines += ["### Offline equals online", "", f"Not measured: {trio['left_out']['online']}.", ""]
    return "\n".join(lines)


def positions_line(positions: int) -> str:
    few = (
        " Bytes hold the fixed part of a file too: 12 kB with compact values, 8 kB in float32."
        if positions < 100
        else ""
    )
    return f"{positions:,} of the positions.{few}"


def fact_lines(trio: Mapping[str, Any]) -> list[str]:
    """What was measured, and by which commands."""
    facts, runs = trio["facts"], dict[str, list[str]]()
    for table, command in trio["commands"].items():
        if table != "facts":
            runs.setdefault(command, []).append(table)
    (first, *others) = runs
    return [
        f"{facts['parameters']:,} parameters, V = {facts['vocabulary_size']:,}; {facts['positions']:,} response "
        f"positions, entropy of the reference {facts['entropy']:.2f} nats, D_t (dpo/reverse) at 10, 50 and 90%: "
        f"{', '.join(f'{d:.3f}' for d in facts['l1_distance'])}.",
        "",
        f"Measured by `{first}`.",
        *(f"The tables {', '.join(runs[command])} by `{command}`." for command in others),
    ]


def teachers_table(rows: Sequence[Row]) -> str:
    lines = [
        f"| | angle, {STAGES} | norm ratio at the reference | deficit, {STAGES} | error of log p\\*, kept: mean (max) "
        "| its tail's | w_t < 0.01: positions, loss, gradient |",
        "|---|---|--:|---|---|--:|---|",
    ]
    for row in rows:
        cells = [
            row["name"],
            _degrees(row["angle"]),
            f"{row['norm_ratio'][0]:.4f}",
            _percents(row["deficit"]),
            f"{row['kept_error']:.1e} ({row['kept_error_max']:.1e})",
            f"{row['tail_error']:.1e}",
            _percents([row["low_positions"], row["low_loss"], row["low_gradient"]]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def frontier_table(rows: Sequence[Row]) -> str:
    lines = [
        "| support | values | tokens, mean | bytes a position | mass kept: reference, teacher (gain 10) "
        f"| angle, {STAGES} | deficit, {STAGES} |",
        "|---|---|--:|--:|---|---|---|",
    ]
    for row in rows:
        cells = [row["support"], row["values"], f"{row['mean']:.0f}", f"{row['bytes']:.0f}"]
        cells.append(", ".join(f"{mass:.3f}" for mass in row["coverage"]))
        lines.append(f"| {' | '.join([*cells, _degrees(row['angle']), _percents(row['deficit'])])} |")
    return "\n".join(lines)


def goal_lines(name: str, rows: Sequence[Row]) -> list[str]:
    """What the bytes of a mean of 64 tokens in float32 buy, and the fewest bytes that reach the goal."""
    ours = [row for row in rows if row["support"] == "ours"]
    plain = [row for row in ours if row["values"] == "float32" and row["top_k"] == 64]
    if name not in GOALS or not plain:
        return []
    angle, deficit = GOALS[name]
    budget = plain[0]["bytes"]
    best = max((row for row in ours if row["bytes"] <= budget), key=lambda row: row["mean"])
    reached = [row for row in ours if max(row["angle"]) < angle and max(map(abs, row["deficit"])) < deficit]
    lines = [
        f"Asked for: under {angle:g} degrees and {deficit:.1%} at every stage, for every gain from 2 to 20, at the "
        f"bytes of a mean of 64 tokens in float32, {budget:.0f}. They buy a mean of {best['mean']:.0f} tokens, "
        f"{best['values']}: {max(best['angle']):.2f} degrees and {max(map(abs, best['deficit'])):.2%} at the worst "
        "stage."
    ]
    if not reached:
        return [*lines, "No size that was measured reaches it."]
    first = min(reached, key=lambda row: row["bytes"])
    return [
        *lines,
        f"First reached with a mean of {first['mean']:.0f} tokens, {first['values']}: {first['bytes']:.0f} bytes, "
        f"{first['bytes'] / budget:.2f} of them.",
    ]


def between_table(rows: Sequence[Row]) -> str:
    lines = [
        "| | error of the tail's log partition, nats: mean (max) | its bound: mean (max) | largest excess over it | "
        "error of log p\\*, kept: mean (max) |",
        "|---|---|---|--:|---|",
    ]
    for row in rows:
        cells = [
            row["name"],
            f"{row['partition_error']:.1e} ({row['partition_error_max']:.1e})",
            f"{row['bound']:.1e} ({row['bound_max']:.1e})",
            f"{row['over_bound']:.1e}",
            f"{row['kept_error']:.1e} ({row['kept_error_max']:.1e})",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def dtype_lines(trio: str, rows: Sequence[Row], top_k: int) -> list[str]:
    """The table, and whether float16 reaches the goal."""
    lines = [
        f"| bodies | gain | angle of the dtype alone, {STAGES} | with support and codec, a mean of {top_k} tokens "
        "| the same with max_weight 1 | error of l_dpo - l_reverse | of a size of |",
        "|---|--:|---|---|---|--:|--:|",
    ]
    for row in rows:
        cells = [DTYPE_NAMES[row["dtype"]], f"{row['gain']:g}"]
        cells += [_degrees(row[kind]) for kind in ("alone", "chain", "capped")]
        cells += [f"{row[name]:.4f}" for name in ("error", "signal")]
        lines.append(f"| {' | '.join(cells)} |")
    if trio != DTYPE_GOAL[0]:
        return lines
    goal = f"Asked for: under {DTYPE_GOAL[1]:g} degrees of float16, support and codec together, at the reference."
    ways = {"Without a cap of lambda_t": "chain", "With max_weight 1": "capped"}
    return [*lines, "", " ".join([goal, *(goal_line(way, kind, rows) for way, kind in ways.items())])]


def goal_line(way: str, kind: str, rows: Sequence[Row]) -> str:
    angles = {f"{row['gain']:g}": row[kind][0] for row in rows if row["dtype"] == "float16"}
    reached = ", ".join(gain for gain, angle in angles.items() if angle < DTYPE_GOAL[1]) or "none"
    return (
        f"{way}: {', '.join(f'{angle:.2f}° at gain {gain}' for gain, angle in angles.items())}; reached at {reached}."
    )


def parameters_table(rows: Sequence[Row]) -> str:
    lines = ["| the student is | angle | norm ratio |", "|---|--:|--:|"]
    lines += [f"| the {row['name']} model | {row['angle']:.3f}° | {row['norm_ratio']:.4f} |" for row in rows]
    return "\n".join(lines)


def student_table(rows: Sequence[Row]) -> str:
    lines = [f"| computed in | max_weight | angle, {STAGES} | norm ratio, {STAGES} |", "|---|--:|---|---|"]
    for row in rows:
        cap = "none" if row["max_weight"] is None else f"{row['max_weight']:g}"
        ratios = " / ".join(f"{ratio:.4f}" for ratio in row["norm_ratio"])
        lines.append(f"| {row['name']} | {cap} | {_degrees(row['angle'])} | {ratios} |")
    return "\n".join(lines)


def _degrees(angles: Iterable[float]) -> str:
    return " / ".join(f"{angle:.2f}°" for angle in angles)


def _percents(shares: Iterable[float | None]) -> str:
    return " / ".join("-" if share is None else f"{share:.1%}" for share in shares)


STUDENT = """\
Angle between the gradient over all parameters of a student that computes in half precision and that in float32, from
the same sparse targets, with gain 10. The student was trained on the measured rows in float32 until its loss was a
quarter (half way) and a 25th (nearly there) of the reference's. fp16 autocast rounds the inputs of the output layer's
products to float16, bf16 autocast leaves them in float32. Emulated on a CPU: inputs and results of matrix products are
rounded as autocast does it, and the loss is scaled; sums of products are in float32."""

INTRODUCTION = """\
# Fidelity: how far a cached teacher is from live models

This page is written by `python -m benchmarks.fidelity`; the section of a trio names the commands that measured it.

A cache keeps some tokens of every position and puts the rest together. This page measures what that costs, against live
models, in float64 over the whole vocabulary:

* **angle**: between the gradient of the sparse loss and that of the dense one, over the student's logits at all
  positions, each weighted by lambda_t. Three students: at the reference, half way to the teacher (in logits), and nine
  tenths of the way. There the gradient is a tenth of what it was, so a fixed error weighs ten times as much.
* **deficit**: the part of the dense loss that the sparse one lacks. By the data-processing inequality it is 0 or more
  for exact values. Rounded ones move the optimum a little, which shows where almost nothing is left to learn.
* **error of log p\\***: of the composed teacher, in nats, on the kept tokens, and for the mass of the rest.
* **strengths between nodes**: the error of the interpolated log partition of the tail, and the bound that convexity
  gives. An excess of up to 2^-12 nat, 2.4e-04, is the rounding of compact tails.
* **dtype of the bodies**: the gradient of the dense loss of rounded bodies, and that of a cache of them, against the
  dense loss of float32 bodies. Output layers have float32 products in all. bfloat16 and float16 bodies are run as they
  are, on a CPU. TF32 products are emulated: the factors of the linear layers' and attention's products are rounded to
  ten bits of mantissa, and added up in float32. The error of l_dpo - l_reverse is the mean of its absolute value under
  p_dpo, in nats, beside that of the difference itself.
* **bytes a position**: everything that is stored, compressed (zstd level 3), with the row's input ids but without its
  prompt.

[teacher.md](teacher.md) explains which tokens are kept, [format.md](format.md) explains compact values, and
[decisions/](decisions/) has what was tried and rejected.
"""
