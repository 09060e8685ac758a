"""What came out, in words: the page docs/results.md. Pure functions of results.json."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.alignment.experiment import KLS
from benchmarks.alignment.frontier import Interval, interval, reward_at
from benchmarks.alignment.methods import BETA, ITSELF, MILD, PLENTY
from benchmarks.alignment.options import BATCH_SIZE
from benchmarks.alignment.summary import (
    ABLATIONS,
    MILD_ABLATIONS,
    RunFigures,
    accuracies,
    difference,
    frontier,
    methods_of,
    points_of,
    run_figures,
    seeds_of,
    seeds_with,
    target_of,
)
from benchmarks.alignment.texts import CREDIT, FRONTIER, INTRODUCTION, MILD_TEXT, OUTLOOK, PLENTY_TEXT, RUNS, THEMSELVES

Results = Mapping[str, Any]


def page(results: Results, pictures: str) -> str:
    """All sections; pictures: the folder of frontier.svg and steps.svg, as seen from the page."""
    figures = [row for row in run_figures(results) if ITSELF not in row.method]
    students = [name for name in methods_of(results) if ITSELF not in name]
    parts = [
        _introduction(results),
        "## What came out\n",
        *goal_lines(results, figures),
        "",
        OUTLOOK.rstrip(),
        "\n## True reward at a matched KL\n",
        FRONTIER,
        f"![true reward against KL to the reference]({pictures}/frontier.svg)\n",
        frontier_table(results, [name for name in students if not name.endswith(MILD)]),
        "\n### With mild teachers\n",
        MILD_TEXT.format(rate=min(results["settings"]["learning_rates"]), seeds=_seeds_text(results, MILD)),
        frontier_table(results, [name for name in students if name.endswith(MILD)]),
        "\n### The teachers themselves\n",
        THEMSELVES,
        frontier_table(results, [name for name in methods_of(results) if ITSELF in name]),
        *plenty_table(results),
        "\n## The ablations\n",
        "Differences of two frontiers, paired over seeds. The paper's order asks for each to be above 0.\n",
        order_table(results),
        "\n## Where the teachers put their distance\n",
        CREDIT,
        *credit_tables(results),
        "\n## Every run\n",
        RUNS.format(beta=BETA, target=_text(interval([target_of(seed) for seed in seeds_of(results)]))),
        f"![true reward and KL along the trainings]({pictures}/steps.svg)\n",
        runs_table(figures),
        "",
        seconds_text(results),
        "\n## How the teachers judge held-out pairs\n",
        accuracy_table(results),
        "\n## Learning rates\n",
        rates_table(results),
    ]
    return "\n".join(parts) + "\n"


def goal_lines(results: Results, figures: Sequence[RunFigures]) -> Iterator[str]:
    """The three goals, and whether they are reached."""
    for name in ("aligndistil", f"aligndistil, {MILD}"):
        if name not in methods_of(results):
            continue
        found = {kl: difference(results, name, "dpo", [kl]) for kl in KLS}
        above = [kl for kl in KLS if found[kl].is_above_zero]
        below = [kl for kl in KLS if found[kl].is_below_zero]
        rest = [kl for kl in KLS if kl not in above + below]
        yield (
            f"* **The frontier of {name} against DPO's**: above it, with the interval, at {_at(above)}; below it at "
            f"{_at(below)}; not told apart at {_at(rest)}."
        )
    for kind in ("", f", {MILD}"):
        rows = [row for row in figures if row.method.endswith(MILD) == bool(kind)]
        dpo = next((row for row in rows if row.method == f"dpo{kind}" and row.knob == f"beta {BETA:g}"), None)
        if dpo is None or dpo.steps is None:
            continue
        reached = [
            f"{row.method}, {row.knob} ({row.steps:.0f})"
            for row in rows
            if "aligndistil" in row.method and row.steps and row.steps <= dpo.steps / 2 and row.reached == row.seeds
        ]
        yield (
            f"* **Steps to the last reward of dpo{kind}** (DPO itself: {dpo.steps:.0f}): half of them or fewer, on "
            f"every seed: {'; '.join(reached) or 'no run of aligndistil'}."
        )
    gaps = {pair: difference(results, *pair, KLS) for pair in _ablations(results)}
    for word, pairs in (
        ("as in the paper", [pair for pair, gap in gaps.items() if gap.is_above_zero]),
        ("the other way round", [pair for pair, gap in gaps.items() if gap.is_below_zero]),
        ("not told apart", [p for p, gap in gaps.items() if not gap.is_above_zero and not gap.is_below_zero]),
    ):
        named = "; ".join(f"{mine} / {other}" for mine, other in pairs) or "none"
        yield f"* **Order of the frontiers, mean over the KLs, {word}**: {named}."


def frontier_table(results: Results, methods: Sequence[str]) -> str:
    head = " | ".join(f"KL {kl:g} | less DPO's" for kl in KLS)
    lines = [f"| | {head} |", "|---|" + "--:|--:|" * len(KLS)]
    for method in methods:
        cells = []
        for kl in KLS:
            cells.append(_text(frontier(results, method, kl)))
            cells.append("" if method == "dpo" else _marked(difference(results, method, "dpo", [kl])))
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def order_table(results: Results) -> str:
    lines = [
        f"| | {' | '.join(f'at {kl:g} nats' for kl in KLS)} | mean of these |",
        "|---|" + "--:|" * (len(KLS) + 1),
    ]
    for mine, other in _ablations(results):
        cells = [_marked(difference(results, mine, other, [kl])) for kl in KLS]
        cells.append(_marked(difference(results, mine, other, KLS)))
        lines.append(f"| {mine} less {other} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plenty_table(results: Results) -> Iterator[str]:
    """The seed with many pairs; nothing where it has not been run."""
    if "plenty" not in results:
        return
    seed = results["plenty"]
    yield "\n### With many more pairs\n"
    yield PLENTY_TEXT.format(
        pairs=PLENTY * results["settings"]["pairs"],
        rate=min(results["settings"]["learning_rates"]),
        seed=results["tuning"]["seed"],
    )
    yield f"| | {' | '.join(f'KL {kl:g}' for kl in KLS)} |"
    yield "|---|" + "--:|" * len(KLS)
    for method in dict.fromkeys(run["method"] for run in seed["runs"]):
        cells = [f"{reward_at(points_of(seed, method), kl):.2f}" for kl in KLS]
        yield f"| {method} | {' | '.join(cells)} |"


def credit_tables(results: Results) -> Iterator[str]:
    """One for each kind of teachers, on the seed of the learning rates."""
    kinds = dict(results.get("mild_tuning", {}).get("credit", {}))
    if "plenty" in results:
        kinds["with many more pairs"] = results["plenty"]["credit"]
    for kind, found in kinds.items():
        yield f"Teachers: {kind}.\n"
        yield (
            "| | P(the right word) | P(stop) | KL at words | KL at stops | KL, all | D_t at words | D_t at stops |\n"
            "|---|--:|--:|--:|--:|--:|--:|--:|"
        )
        for name, row in found.items():
            cells = [f"{row[key]:.3f}" for key in ("right_word", "stop", "word_kl", "stop_kl", "all_kl")]
            cells += [f"{row[key]:.2f}" if key in row else "" for key in ("word_distance", "stop_distance")]
            yield f"| {name} | {' | '.join(cells)} |"
        yield ""


def runs_table(figures: Sequence[RunFigures]) -> str:
    lines = [
        "| | | last reward | best on the way | last KL, nats | tokens | steps to DPO's | CPU seconds to it | seeds |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in figures:
        cells = [row.method, row.knob, _text(row.reward), _text(row.best), _text(row.kl_nats), f"{row.tokens:.1f}"]
        cells += [
            "-" if row.steps is None else f"{row.steps:.0f}",
            "-" if row.seconds is None else f"{row.seconds:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} | {row.reached} of {row.seeds} |")
    return "\n".join(lines)


def seconds_text(results: Results) -> str:
    """What students need before their first step."""
    seeds = seeds_of(results)
    parts = {
        name: interval([seed["teacher_seconds"][name] for seed in seeds])
        for name in ("dpo", "reverse", "cache of pairs", "cache of rollouts")
    }
    listed = ", ".join(f"{name} {value.mean:.1f}" for name, value in parts.items())
    return f"Before a student's first step, CPU seconds: {listed}. They are not in the table, and serve all students."


def accuracy_table(results: Results) -> str:
    ceiling = interval([seed["ceiling"] for seed in seeds_of(results)])
    lines = ["| | share of held-out pairs told right |", "|---|--:|"]
    lines += [f"| {name} | {_percent(value)} |" for name, value in accuracies(results).items()]
    lines.append(f"| the true reward | {_percent(ceiling)} |")
    return "\n".join(lines)


def rates_table(results: Results) -> str:
    tuning = results["tuning"]
    rates = [f"{rate:g}" for rate in results["settings"]["learning_rates"]]
    lines = [
        f"One rule for all, on seed {tuning['seed']}, which is none of those above: the mean of a method's frontier",
        "over the same KLs, with all values of its knob, by the half of the samples that chooses. Learned strengths",
        "have the rates of aligndistil and adaptive, students on rollouts those of the same on pairs.",
        "",
        f"| | {' | '.join(rates)} | chosen |",
        "|---|" + "--:|" * (len(rates) + 1),
    ]
    for kind, found in (("", tuning), (f", {MILD}", results.get("mild_tuning", {"scores": {}}))):
        for name, scores in found["scores"].items():
            cells = " | ".join(f"{scores[rate]:.2f}" for rate in rates)
            lines.append(f"| {name}{kind} | {cells} | {found['rates'][name]:g} |")
    return "\n".join(lines)


def _introduction(results: Results) -> str:
    seeds, settings = results["seeds"], results["settings"]
    parts = [*seeds.values(), *results["mild"].values()]
    return INTRODUCTION.format(
        command=results["command"],
        seeds=", ".join(seeds),
        minutes=sum(part["cpu_seconds"] for part in parts) / 60,
        wall_minutes=sum(part["wall_seconds"] for part in parts) / 60,
        samples=20 * settings["samples_per_prompt"],
        steps=settings["pairs"] // BATCH_SIZE,
        start=_text(interval([seed["reference"]["reward"] for seed in seeds.values()])),
        start_tokens=interval([seed["reference"]["tokens"] for seed in seeds.values()]).mean,
        beta=BETA,
        **settings,
    )


def _ablations(results: Results) -> list[tuple[str, str]]:
    found = methods_of(results)
    return [pair for pair in (*ABLATIONS, *MILD_ABLATIONS) if pair[0] in found and pair[1] in found]


def _seeds_text(results: Results, kind: str) -> str:
    done, asked = len(seeds_with(results, f"aligndistil, {kind}")), len(results["seeds"])
    return "all seeds" if done == asked else f"{done} of the {asked} seeds"


def _at(kls: list[float]) -> str:
    return (", ".join(f"{kl:g}" for kl in kls) + " nats") if kls else "none"


def _text(value: Interval) -> str:
    return f"{value.mean:.2f}" + ("" if value.half_width is None else f" ± {value.half_width:.2f}")


def _marked(value: Interval) -> str:
    """Bold where the interval is on one side of 0."""
    text = f"{value.mean:+.2f}" + ("" if value.half_width is None else f" ± {value.half_width:.2f}")
    return f"**{text}**" if value.is_above_zero or value.is_below_zero else text


def _percent(value: Interval) -> str:
    return f"{value.mean:.1%}" + ("" if value.half_width is None else f" ± {value.half_width:.1%}")
