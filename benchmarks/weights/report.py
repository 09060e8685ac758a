"""Writes docs/weights.md from results.json. Pure functions of plain numbers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.alignment.frontier import Interval, interval, reward_at
from benchmarks.weights.curves import (
    KNOWN_KLS,
    Curves,
    Parts,
    Point,
    at_ends,
    compared_with,
    differences,
    known_curves,
    known_gaps,
    plain_curves,
    rows_of,
    trio_curves,
    trio_gaps,
)  # fmt: skip
from benchmarks.weights.rules import NONE

Results = Mapping[str, Any]


def page(results: Results) -> str:
    lines = [INTRODUCTION.format(command=results["command"]), "## What came out", "", *verdict(results), ""]
    if results["known"]:
        lines += ["## The known-reward task", "", *known_section(results), ""]
    for name, gains in results["trios"].items():
        for gain, parts in gains.items():
            more = results["more_rates"].get(name, {}).get(gain, {})
            lines += [f"## Trio {name}, gain {gain}", "", *trio_section(results, parts, more), ""]
    return "\n".join(lines)


def verdict(results: Results) -> list[str]:
    """Which rules move a frontier, and what follows for the defaults."""
    tasks = {"The known-reward task": (known_gaps(results["known"]), 3)}
    for name, gains in results["trios"].items():
        for gain, parts in gains.items():
            more = results["more_rates"].get(name, {}).get(gain, {})
            tasks[f"Trio {name}, gain {gain}"] = (trio_gaps(parts, more), 1)
    lines = [
        "A rule's frontier less that of none from the same bodies: in true reward, the mean of the four KLs, on the "
        "known-reward task; in % of the reward at the KL where a student ends, on the trios, where none goes as far.",
        "",
    ]
    for task, (gaps, digits) in tasks.items():
        for dtype in dict.fromkeys(dtype for dtype, _, _ in gaps):
            cells = [
                f"{rule} {text(gap, sign=True, digits=digits)}"
                for of, rule, gap in gaps
                if of == dtype and rule != NONE
            ]
            lines += [f"* **{task}, {dtype} bodies**: {'; '.join(cells)}."] if cells else []
    above = [{rule for _, rule, gap in gaps if gap.is_above_zero and rule != NONE} for gaps, _ in tasks.values()]
    moved = ", ".join(sorted(set.intersection(*above))) or "no rule, so both stay: no cap, and 1e-3"
    return [
        *lines,
        f"* **The defaults** change for a rule that is clearly above none in every task. This is so for {moved}.",
    ]


def known_section(results: Results) -> list[str]:
    found, parts = results["settings"]["known"], results["known"]
    gains = ", ".join(f"{gain:g}" for gain in found["known_gains"])
    lines = [
        f"{found['pairs']:,} pairs in {found['pairs'] // 32} steps of 32; dpo and reverse of beta "
        f"{found['known_beta']:g} and learning rate {found['known_teacher_rate']:g}; students of gains {gains} at "
        f"learning rate {found['known_rate']:g}, judged half way and at the end. Seeds: {seeds_text(parts)}.",
        "",
        f"| bodies | rule | {' | '.join(f'reward at KL {kl:g} | less' for kl in KNOWN_KLS)} | less, mean of all |",
        f"|---|---|{'--:|--:|' * len(KNOWN_KLS)}--:|",
    ]
    for dtype, rule in rows_of(parts):
        here, other = known_curves(parts, dtype, rule), known_curves(parts, *compared_with(dtype, rule))
        cells = [dtype, rule]
        for kl in KNOWN_KLS:
            cells += [text(over_seeds(here, lambda c, kl=kl: reward_at(c, kl))), gap_text(here, other, [kl])]
        lines.append(f"| {' | '.join([*cells, gap_text(here, other, KNOWN_KLS)])} |")
    return lines


def trio_section(results: Results, parts: Parts, more: Parts) -> list[str]:
    """more: students without a limit at other learning rates."""
    found = results["settings"]["trios"]
    rates = sorted({run["rate"] for by_seed in more.values() for part in by_seed.values() for run in part["runs"]})
    lines = [
        f"{found['trio_steps']} steps of 8, learning rate {found['trio_rate']:g}, {found['trio_rows']} responses of at "
        f"most {found['max_length']} tokens; {found['held_out_rows']} held-out ones. Orders of the data: "
        f"{seeds_text(parts)}. Reward and KLs are nats a token.",
        "",
        "| bodies | rule | reward at the end | KL to the reference | less at that KL, % | KL to the true teacher |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for dtype, rule, rate in [
        *((*row, None) for row in rows_of(parts)),
        *((dtype, NONE, rate) for dtype in more for rate in rates),
    ]:
        here = trio_curves(parts, dtype, rule) if rate is None else trio_curves(more, dtype, rule, rate)
        other = plain_curves(parts, more, compared_with(dtype, rule)[0])
        same = (dtype, rule) == ("float32", NONE)
        reward, kl, teacher = (
            text(over_seeds(here, lambda c, n=name: c[-1][n]), digits=5) for name in ("reward", "kl_nats", "teacher_kl")
        )
        at_end = "" if same else end_text(here, other)
        cells = [dtype, rule if rate is None else f"{rule}, learning rate {rate:g}", reward, kl, at_end, teacher]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def over_seeds(curves: Curves, figure: Callable[[Sequence[Point]], float]) -> Interval:
    return interval([figure(curve) for curve in curves.values()])


def gap_text(here: Curves, other: Curves, kls: Sequence[float]) -> str:
    gaps = differences(here, other, kls)
    return text(interval(gaps), sign=True) if gaps else ""


def end_text(here: Curves, other: Curves) -> str:
    gaps = at_ends(here, other)
    return text(interval(gaps), sign=True, digits=1) if gaps else "not reached"


def text(found: Interval, *, sign: bool = False, digits: int = 3) -> str:
    """Bold if the interval of a difference is on one side of 0."""
    shown = f"{found.mean:{'+' if sign else ''}.{digits}f}"
    if found.half_width is not None:
        shown += f" ± {found.half_width:.{digits}f}"
    return f"**{shown}**" if sign and (found.is_above_zero or found.is_below_zero) else shown


def seeds_text(parts: Parts) -> str:
    return ", ".join(f"{len(by_seed)} for {dtype}" for dtype, by_seed in parts.items())


INTRODUCTION = """\
# Weak positions: does a limit on lambda_t pay?

This page is written by `{command}`. It shows
what was done by then, and says how many seeds that were; the same command goes on with what is missing.

At a position where dpo and negative agree, w_t is small and the weight of the loss, lambda_t = beta / w_t, is large: up
to 1000 beta at D_t = 0. Rounding of the bodies decides there where the teacher goes. `--max_weight` caps lambda_t and
leaves the target as it is; `--min_strength` raises w_t, and so moves the target too. The question is whether either
gives more reward **at the same KL to the reference**. More reward at a larger KL alone is no gain: `--gain` does that.

* **The students** are float32, of the preset aligndistil. Their caches are built from bodies in float32, float16 and
  bfloat16, run as they are on a CPU, with the build's defaults but 16 tokens a position on the known-reward task.
* **Rules**: caps of lambda_t in units of beta (10 beta is w_t = 0.1, 1 beta is w_t = 1), and larger `--min_strength`.
* **The known-reward task** is that of [results.md](results.md): frontiers of the true reward against KL to the
  reference, over the gains and judged steps of a rule, on samples that did not choose them.
* **The trios** are those of [fidelity.md](fidelity.md): the expected contrastive reward beta (l_dpo - l_reverse) under
  the student, its KL to the reference and to the true teacher (float32 bodies, no limit), all with dense live float32
  models on held-out responses. Rewards at the same KL are read off the students' paths (every fourth step; a straight
  line between two of them is a mixture of two models), at the KL where a student ends. Students without a limit at
  higher learning rates belong to the frontier of none: limits lead further in as many steps.
* **Less**: a limit less none from the same bodies; half precision without a limit less float32 without one; paired over
  seeds, with 95% t-intervals. Bold: the interval is on one side of 0.
"""
