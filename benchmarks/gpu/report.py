"""The results as Markdown: docs/gpu.md. A pure function of results.json.

Of a dry run no figure is shown: every filled cell reads "dry run".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.parts import NO_GPU
from benchmarks.step.report import NAMES
from benchmarks.step.steps import DENSE, LIGER, ONLINE, SPARSE

DRY = "dry run"
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a part's table.

    text    how a number is written; a cell that is text stays as it is
    scale   what a number is multiplied with first
    over    if given, the value is divided by this column's of the same row
    """

    title: str
    of: str
    text: str = "{:.1f}"
    scale: float = 1.0
    over: str | None = None

    def cell(self, row: Row, *, dry: bool) -> str:
        if self.of not in row or (self.over is not None and self.over not in row):
            return ""
        if dry:
            return DRY
        value = row[self.of]
        if isinstance(value, str):
            return value
        return self.text.format(value * self.scale / (1 if self.over is None else row[self.over]))


COLUMNS = {
    "tests": ("test", [
        Column(title="on a GPU", of="gpu"),
        Column(title="the same body on a CPU", of="cpu"),
    ]),
    "build": ("models, bodies, kernels", [
        Column(title="floor", of="floor_us"),
        Column(title="bodies", of="bodies_us"),
        Column(title="output layers", of="heads_us"),
        Column(title="vocabulary", of="vocabulary_us"),
        Column(title="scoring", of="score_us"),
        Column(title="whole build", of="build_us"),
        Column(title="build / floor", of="build_us", over="floor_us", text="{:.2f}"),
        Column(title="GPU idle", of="idle", text="{:.1%}"),
        Column(title="tokens/s", of="tokens_per_second", text="{:,.0f}"),
        Column(title="of the peak", of="mfu", text="{:.1%}"),
        Column(title="peak memory, GB", of="peak_bytes", text="{:.2f}", scale=1e-9),
    ]),
    "step": ("student, products, step", [
        Column(title="ms", of="step_ms"),
        Column(title="tokens/s", of="tokens_per_second", text="{:,.0f}"),
        Column(title="of the peak", of="mfu", text="{:.1%}"),
        Column(title="peak memory, GB", of="peak_bytes", text="{:.2f}", scale=1e-9),
        Column(title="beyond the weights", of="step_bytes", text="{:.2f}", scale=1e-9),
        Column(title="loss and output layer, ms", of="loss_ms"),
        Column(title="their memory, GB", of="loss_bytes", text="{:.2f}", scale=1e-9),
        Column(title="less gradients", of="loss_less_gradients", text="{:.2f}", scale=1e-9),
    ]),
    "dtypes": ("bodies", [
        Column(title="angle, gain 2", of="angle_2", text="{:.2f}"),
        Column(title="angle, gain 10", of="angle_10", text="{:.2f}"),
        Column(title="student in the same dtype, gain 10", of="student_angle_10", text="{:.2f}"),
        Column(title="error of l_dpo - l_reverse, nats", of="error_nats", text="{:.4f}"),
    ]),
    "loader": ("loader", [
        Column(title="rows/s alone", of="rows_per_second", text="{:,.0f}"),
        Column(title="wait, ms", of="wait_ms"),
        Column(title="step, ms", of="step_ms"),
        Column(title="share of a step that waits", of="share", text="{:.1%}"),
    ]),
}  # fmt: skip
TITLES = {
    "tests": "The tests marked `gpu`",
    "build": "The build against its floor",
    "step": "The student's step",
    "dtypes": "Dtypes of the bodies",
    "loader": "The loader's feed",
}
TEXTS = {
    "tests": "Each of these tests runs the same body on a GPU and on a CPU, where the ordinary suite has it; one of a "
    "Triton kernel runs in Triton's interpreter there.",
    "build": "Microseconds per response position, three models together. The floor: three bare forward passes in half "
    "precision over the same batches, logits at the response positions, nothing else. The whole build scores, "
    "compresses, writes and reads back; stages are each run by themselves. Peak memory includes the models.",
    "step": "Forward pass, loss and backward pass; weights float32, products in half precision, the same for all. "
    "Weights and gradients of the student are in the peak memory, and so are the live models, which only the online "
    "step needs. Loss and output layer by themselves go from the hidden states and back to them.",
    "dtypes": "Degrees between the dense gradient over logits from these bodies and from float32 ones, the student at "
    "the reference; D_t, teacher and lambda_t from the same bodies. The error is its mean size under dpo.",
    "loader": "The trainer's own DataLoader over a cache, by itself, and with a step after every batch; the first "
    "batch does not count.",
}

FACTS = {
    "build": "Batches of {rows} sequences of {length} tokens, {prompt} of them the prompt's; {batches} batches; "
    "{top_k} tokens kept a position.",
    "step": "{rows} sequences, {tokens:,} tokens, {positions:,} response positions.",
    "dtypes": "Models: {trio}; size of l_dpo - l_reverse {signal_nats:.3f} nat.",
    "loader": "{batches} batches of {rows} rows; the student's shape is {size}.",
}


def page(results: Mapping[str, Any]) -> str:
    """The whole page."""
    settings = results["settings"]
    parts = [
        "# On a GPU",
        _introduction(settings),
        *(_goals(results) if not settings["dry_run"] else []),
        *(_part(name, found, dry=settings["dry_run"]) for name, found in results["parts"].items()),
        _floor(results["floor"]),
    ]
    return "\n\n".join(parts) + "\n"


def _introduction(settings: Mapping[str, Any]) -> str:
    lines = [f"`{settings['command']}`", ""]
    if settings["dry_run"]:
        lines += ["**A dry run**: tiny shapes on a CPU, to see that every part runs. Nothing here is a measurement."]
    elif settings["gpu"] is None:
        lines += [
            f"**Its cells are empty: {NO_GPU}.** This page is written by the command above, which fills them in eight "
            "minutes on one H100 ([how](../benchmarks/gpu/README.md)). What a CPU can show is here: the bodies of the "
            "tests, and the arithmetic of the floor. "
            "`python -m benchmarks.gpu --dry_run` runs every part in tiny shapes on a CPU; the test suite does so too."
        ]
    else:
        gpu = settings["gpu"]
        lines += [f"{gpu['name']}, {gpu['bytes'] / 1e9:.0f} GB, CUDA {gpu['cuda']}; {settings['processor']}."]
    lines += ["", f"{'' if settings['gpu'] else settings['processor'] + '; '}{settings['versions']}."]
    return "\n".join(lines)


def _part(name: str, found: Mapping[str, Any], *, dry: bool) -> str:
    first, columns = COLUMNS[name]
    state = found["state"]
    lines = [f"## {TITLES[name]}", "", TEXTS[name], ""]
    if name in FACTS and found["facts"] and not dry:
        lines += [FACTS[name].format(**found["facts"]), ""]
    lines += [f"| {first} | {' | '.join(c.title for c in columns)} |", f"|---|{'--:|' * len(columns)}"]
    for row, values in found["rows"].items():
        lines.append(f"| {_label(row)} | {' | '.join(column.cell(values, dry=dry) for column in columns)} |")
    if state == NO_GPU:
        return "\n".join([*lines, "", f"Empty: {NO_GPU}."])
    if state != "done":
        lines += ["", f"**Not complete**: {state}."]
    reasons = [f"* {_label(row)}: {why}." for row, why in found["why"].items()]
    return "\n".join([*lines, *([""] if reasons else []), *reasons])


def _label(row: str) -> str:
    """A row's name; a step is called as in the benchmark of steps."""
    *most, last = row.split(", ", 2)
    return ", ".join([*most, NAMES.get(last, last)])


def _floor(floor: Mapping[str, Any]) -> str:
    lines = [
        "## The floor by arithmetic",
        "",
        f"Three {floor['size']} models, card {floor['card']}, per response position: operations or bytes from the "
        "shapes (`benchmarks/gpu/shapes.py`), divided by the card's stated peak times a share of it that is assumed to "
        "be reached. Nothing here was measured.",
        "",
        "| | way | per position | share of the peak | us |",
        "|---|---|--:|--:|--:|",
    ]
    for cost in floor["costs"]:
        amount = f"{cost['amount'] / 1e9:.2f} GFLOP" if cost["unit"] == "FLOP" else f"{cost['amount'] / 1e6:.1f} MB"
        shares, micros = (_span(cost[name], text) for name, text in (("shares", "{:.0%}"), ("micros", "{:.1f}")))
        lines.append(f"| {cost['part']} | {cost['way']} | {amount} | {shares} | {micros} |")
    return "\n".join(lines)


def _span(values: Sequence[float], text: str) -> str:
    return " to ".join(dict.fromkeys(text.format(value) for value in values))


def figures(results: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures with goals; None where a cell that they need is empty."""
    parts = results["parts"]
    build = _rows(parts, "build")
    first = next(iter(build.values()), {})
    step = {}
    for row, values in _rows(parts, "step").items():
        step.setdefault(row.split(", ", 2)[2], values)  # the first dtype's
    ours, theirs = step.get(SPARSE, {}), step.get(DENSE, {})
    loaders = [row["share"] for row in _rows(parts, "loader").values() if "share" in row]
    return {
        "build": _over(first, "build_us", first, "floor_us"),
        "idle": first.get("idle"),
        "liger": _over(ours, "step_ms", step.get(LIGER, {}), "step_ms"),
        "online": _over(step.get(ONLINE, {}), "step_ms", ours, "step_ms"),
        "memory": _over(ours, "loss_less_gradients", theirs, "loss_less_gradients"),
        "loader": min(loaders, default=None),
    }


GOALS = {
    "build": ("a build over three bare half-precision forward passes", 1.1, True),
    "idle": ("share of a build in which the GPU is idle", 0.02, True),
    "liger": ("a student's step over Liger's fused step of plain fine-tuning", 0.9, True),
    "online": ("the live online step over a student's step", 4.0, False),
    "memory": ("memory of loss and output layer, less gradients, over the dense loss's", 0.1, True),
    "loader": ("share of a step that waits for its batch", 0.01, True),
}
"""Figure -> what it is, the goal, and whether that is the largest value (else the smallest)."""


def asked(name: str) -> str:
    _, goal, most = GOALS[name]
    return f"{goal:g} or {'less' if most else 'more'}"


def _goals(results: Mapping[str, Any]) -> list[str]:
    lines = ["| goal | asked for | measured |", "|---|--:|--:|"]
    for name, value in figures(results).items():
        what, goal, most = GOALS[name]
        reached = "" if value is None else ("reached" if (value <= goal) == most or value == goal else "missed")
        lines.append(f"| {what} | {asked(name)} | {'' if value is None else f'{value:.3g}, {reached}'} |")
    return ["\n".join(lines)]


def _rows(parts: Mapping[str, Any], name: str) -> Mapping[str, Row]:
    return parts[name]["rows"] if name in parts else {}


def _over(above: Row, of: str, below: Row, by: str) -> float | None:
    return above[of] / below[by] if of in above and by in below and below[by] else None
