"""What a person reads while a student trains: the lines of a logged step, and what changed by the end. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shards.cli.text import counted, duration
from student.log.figures import EVALUATION, NATS, Figure, figure_of
from student.log.series import ENDS, history

SHOWN = ("loss", "kl_teacher", "expected_reward")
"""The figures of a step's line, those that say how well it goes: two that should fall, and one that should rise."""

TOLD = ("loss", "kl_teacher", "expected_reward", "kl_reference")
"""The figures whose way is told at the end."""

GROUPS = {"lower": "lower is better", "higher": "higher is better", None: "neither is better in itself"}


def step_text(logs: Mapping[str, Any], *, step: int, steps: int, seconds_left: float | None) -> str:
    """Two lines: where the run is, and its figures, each with the way that is good."""
    facts = [f"step {step:,}/{steps:,}", f"{step / steps:.0%}"]
    facts += [f"{duration(seconds_left)} left"] if seconds_left else []
    facts += [f"{_told(name, logs)} tokens/s" for name in ("tokens_per_second",) if name in logs]
    facts += [f"learning rate {_told(name, logs)}" for name in ("learning_rate",) if name in logs]
    if skipped := int(logs.get("skipped_steps", 0)):
        facts.append(f"{counted(skipped, 'step')} skipped: gradients beyond float16")
    return "  ".join(facts) + f"\n    {figures_text(logs)}"


def evaluation_text(logs: Mapping[str, Any], *, step: int) -> str:
    """The same for an evaluation after this step."""
    plain = {name.removeprefix(EVALUATION): value for name, value in logs.items() if name.startswith(EVALUATION)}
    return f"evaluation after step {step:,}\n    {figures_text(plain)}"


def other_text(logs: Mapping[str, Any], *, step: int) -> str:
    """A line for what somebody else logs, such as another callback."""
    told = [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in logs.items()]
    return f"step {step:,}: {', '.join(told)}"


def figures_text(logs: Mapping[str, Any]) -> str:
    """The figures of a step, grouped by the way that is good; all are nats per token. Under 100 columns."""
    told = {name: f"{figure_of(name).label} {_told(name, logs)}" for name in SHOWN if name in logs}
    groups = (
        f"{good}: " + ", ".join(told[name] for name in names if name in told)
        for good, names in (("lower is better", SHOWN[:2]), ("higher", SHOWN[2:]))
        if any(name in told for name in names)
    )
    return f"{'; '.join(groups)}; {NATS}"


def changes_text(entries: Sequence[Mapping[str, Any]]) -> str:
    """How the figures changed from the first to the last tenth of the logged steps; empty with fewer than two steps."""
    logged = [entry for entry in entries if "loss" in entry]
    if len(logged) < 2:
        return ""
    found = history(logged)
    lines = [ends_text(len(logged))]
    for good, title in GROUPS.items():
        figures = [figure for figure in map(figure_of, TOLD) if figure.good == good and figure.name in found]
        for row, figure in enumerate(figures):
            series = found[figure.name]
            lines.append(f"  {title if row == 0 else '':<28}{change_text(figure, series.begin, series.end)}")
    return "\n".join(lines)


def ends_text(points: int) -> str:
    """What begin and end of a series are, for so many logged steps."""
    of_each = max(1, points // ENDS)
    if of_each == 1:
        return "from the first to the last logged step"
    return f"mean of the first {of_each:,} logged steps -> mean of the last {of_each:,}"


def change_text(figure: Figure, begin: float, end: float) -> str:
    """A figure's way: its name, unit, both values, and whether that is better."""
    better = ""
    if figure.good is not None and begin != end:
        better = "  better" if (end < begin if figure.good == "lower" else end > begin) else "  worse"
    unit = "" if figure.unit in ("", "share") else f" {figure.unit}"
    return f"{figure.label:<26}{figure.text(begin):>10} -> {figure.text(end):<10}{unit}{better}".rstrip()


def next_text(out: str, evaluation: Iterable[str]) -> str:
    """What to type next. evaluation: caches that the run did not train on, if it was given some."""
    held_out = " ".join(evaluation) or "HELD_OUT_CACHE"
    commands = {
        f"python -m student.report {out} --html report.html": "its curves",
        f"python -m student.evaluate --model {out} --shards {held_out}": "is it better?",
        f"vllm serve {out}": "talk to it",
    }
    width = max(map(len, commands))
    return "\n".join(["next", *(f"  {command:<{width}}  {why}" for command, why in commands.items())])


def _told(name: str, logs: Mapping[str, Any]) -> str:
    return figure_of(name).text(float(logs[name]))
