"""Writes the page docs/results.md from results.json. Pure functions."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.alignment import real
from benchmarks.alignment.experiment import KLS
from benchmarks.alignment.frontier import Interval, interval
from benchmarks.alignment.methods import DPO_BETAS, FEW, ITSELF, PAPER, PAPER_BETA
from benchmarks.alignment.options import BATCH_SIZE
from benchmarks.alignment.summary import (
    ABLATIONS,
    RunFigures,
    accuracies,
    choices_of,
    difference,
    ending_of,
    frontier,
    methods_of,
    run_figures,
    seeds_of,
    target_of,
)
from benchmarks.alignment.texts import (
    CHOSEN,
    CHOSEN_TEACHERS,
    CREDIT,
    FEW_TEXT,
    FRONTIER,
    INTRODUCTION,
    PAPER_TEXT,
    REAL,
    RUNS,
    THEMSELVES,
)

Results = Mapping[str, Any]
ENDINGS = ("", f", {FEW}")
CREDIT_HEAD = (
    "| | P(the right word) | P(stop) | KL at words | KL at stops | KL, all | D_t at words | D_t at stops |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|"
)


def page(results: Results, pictures: str) -> str:
    """All sections; pictures: the folder of frontier.svg and steps.svg, as seen from the page."""
    figures = [row for row in run_figures(results) if ITSELF not in row.method]
    main, few = ([name for name in methods_of(results) if ending_of(name) == ending] for ending in ENDINGS)
    parts = [
        _introduction(results),
        "## What came out\n",
        *goal_lines(results, figures),
        "\nHow to tell before a run how far a teacher can go: "
        "[recipes.md](recipes.md#how-far-to-go-which-dpo-and-reverse-and-which-gain).",
        "\n## True reward at a matched KL\n",
        FRONTIER,
        f"![true reward against KL to the reference]({pictures}/frontier.svg)\n",
        frontier_table(results, [name for name in main if ITSELF not in name]),
        "\n### The teachers themselves\n",
        THEMSELVES,
        *([PAPER_TEXT.format(beta=PAPER_BETA)] if any(name.endswith(PAPER) for name in main) else []),
        frontier_table(results, [name for name in main if ITSELF in name]),
        "\n### With few pairs\n",
        _few_text(results),
        frontier_table(results, few),
        "\n## The ablations\n",
        "Differences of two frontiers, paired over seeds. The paper's order asks for each to be above 0.\n",
        order_table(results),
        "\n## Where the teachers put their distance\n",
        CREDIT,
        *credit_tables(results),
        "## Every run\n",
        _runs_text(results),
        f"![true reward and KL along the trainings]({pictures}/steps.svg)\n",
        runs_table(figures),
        "",
        seconds_text(results),
        "\n## How the teachers judge held-out pairs\n",
        accuracy_table(results),
        "\n## What was chosen before the runs\n",
        CHOSEN.format(seed=next(iter(results["tuning"]))),
        rates_table(results),
        "",
        CHOSEN_TEACHERS,
        teachers_table(results),
        *(real_section(results) if "real_seeds" in results else []),
    ]
    return "\n".join(parts) + "\n"


def goal_lines(results: Results, figures: Sequence[RunFigures]) -> Iterator[str]:
    """The three goals, and whether they are reached: on all pairs, then on few."""
    for ending in ENDINGS:
        where = "" if not ending else f" ({FEW})"
        found = {kl: difference(results, f"aligndistil{ending}", f"dpo{ending}", [kl]) for kl in KLS}
        above = [kl for kl in KLS if found[kl].is_above_zero]
        below = [kl for kl in KLS if found[kl].is_below_zero]
        rest = [kl for kl in KLS if kl not in above + below]
        yield (
            f"* **The frontier of aligndistil against DPO's{where}**: above it, with the interval, at {_at(above)}; "
            f"below it at {_at(below)}; no clear difference at {_at(rest)}."
        )
        rows = [row for row in figures if ending_of(row.method) == ending]
        beta = choices_of(results, ending)["dpo_beta"]
        dpo = next(row for row in rows if row.method == f"dpo{ending}" and row.knob == f"beta {beta:g}")
        reached = [
            f"{row.method.removesuffix(ending)}, {row.knob} ({row.steps:.0f})"
            for row in rows
            if "aligndistil" in row.method and row.steps and row.steps <= dpo.steps / 2 and row.reached == row.seeds
        ]
        yield (
            f"* **Steps to DPO's last reward{where}** (DPO itself: {dpo.steps:.0f}): half of them or fewer, on every "
            f"seed: {'; '.join(reached) or 'no run of aligndistil'}."
        )
        gaps = {pair: difference(results, *(f"{name}{ending}" for name in pair), KLS) for pair in ABLATIONS}
        for word, pairs in (
            ("as in the paper", [pair for pair, gap in gaps.items() if gap.is_above_zero]),
            ("the other way round", [pair for pair, gap in gaps.items() if gap.is_below_zero]),
            ("no clear difference", [p for p, gap in gaps.items() if not gap.is_above_zero and not gap.is_below_zero]),
        ):
            named = "; ".join(f"{mine} / {other}" for mine, other in pairs) or "none"
            yield f"* **Order of the frontiers, mean over the KLs, {word}{where}**: {named}."


def frontier_table(results: Results, methods: Sequence[str], kls: Sequence[float] = KLS) -> str:
    """Differences are to the DPO of the same pairs."""
    head = " | ".join(f"KL {kl:g} | less DPO's" for kl in kls)
    lines = [f"| | {head} |", "|---|" + "--:|--:|" * len(kls)]
    for method in methods:
        cells, dpo = [], f"dpo{ending_of(method)}"
        for kl in kls:
            cells.append(_text(frontier(results, method, kl)))
            cells.append("" if method == dpo else _marked(difference(results, method, dpo, [kl])))
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def order_table(results: Results) -> str:
    lines = [
        f"| | {' | '.join(f'at {kl:g} nats' for kl in KLS)} | mean of these |",
        "|---|" + "--:|" * (len(KLS) + 1),
    ]
    for ending in ENDINGS:
        for mine, other in ABLATIONS:
            pair = f"{mine}{ending}", f"{other}{ending}"
            cells = [_marked(difference(results, *pair, kls)) for kls in (*([kl] for kl in KLS), KLS)]
            lines.append(f"| {mine} less {other}{ending} | {' | '.join(cells)} |")
    return "\n".join(lines)


def credit_tables(results: Results) -> Iterator[str]:
    """One for each kind of teachers, on the seed of the choices."""
    for ending in ENDINGS:
        for kind, found in choices_of(results, ending)["credit"].items():
            yield f"Teachers of {kind}{ending}.\n"
            yield CREDIT_HEAD
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
    """Learning rates, methods by rates."""
    rates = [f"{rate:g}" for rate in results["settings"]["learning_rates"]]
    lines = [f"| | {' | '.join(rates)} | chosen |", "|---|" + "--:|" * (len(rates) + 1)]
    for ending in ENDINGS:
        choices = choices_of(results, ending)
        for name, scores in choices["scores"].items():
            cells = " | ".join(f"{scores[rate]:.2f}" for rate in rates)
            lines.append(f"| {name}{ending} | {cells} | {choices['rates'][name]:g} |")
    return "\n".join(lines)


def teachers_table(results: Results) -> str:
    """Of the models that teachers are made of, betas by rates; the one chosen in bold."""
    rates = [f"{rate:g}" for rate in results["settings"]["learning_rates"]]
    lines = [f"| | {' | '.join(rates)} |", "|---|" + "--:|" * len(rates)]
    for ending in ENDINGS:
        choices = choices_of(results, ending)
        chosen = f"{choices['beta']:g}", f"{choices['teacher_rate']:g}"
        for beta, scores in choices["teacher_scores"].items():
            cells = [f"**{scores[rate]:.2f}**" if (beta, rate) == chosen else f"{scores[rate]:.2f}" for rate in rates]
            lines.append(f"| beta {beta}{ending} | {' | '.join(cells)} |")
    return "\n".join(lines)


def real_section(results: Results) -> Iterator[str]:
    """Real pairs: the frontier of the contrastive reward, every run, and held-out accuracy."""
    (trio,), settings = results["real_trio"].values(), results["real_settings"]
    rates = ", ".join(f"{rate:g}" for rate in settings["real_learning_rates"])
    yield "\n" + REAL.format(steps=settings["real_pairs"] // real.BATCH, rates=rates, **settings, **trio)
    found = {"seeds": results["real_seeds"], "few_seeds": {name: {"runs": []} for name in results["real_seeds"]}}
    yield frontier_table(found, methods_of(found), real.KLS)
    yield "\n| | | contrastive reward | KL, nats | held-out pairs told right |\n|---|---|--:|--:|--:|"
    for role, point in trio["models"].items():
        kl = abs(point["kl_nats"])  # of the reference to itself, what rounding leaves, on either side of 0
        yield f"| {role} of the trio | | {point['reward']:.2f} | {kl:.2f} | {point['accuracy']:.1%} |"
    seeds = seeds_of(found)
    for i, run in enumerate(seeds[0]["runs"]):
        last = [seed["runs"][i]["points"][-1] for seed in seeds]
        reward, kl, right = (interval([point[name] for point in last]) for name in ("reward", "kl_nats", "accuracy"))
        knob = f"{run['knob']} {run['value']:g}, rate {run['learning_rate']:g}"
        yield f"| {run['method']} | {knob} | {_text(reward)} | {_text(kl)} | {_percent(right)} |"
    told = ", ".join(f"{name} {value:.1%}" for name, value in trio["accuracy"].items() if name != "reference")
    yield f"\nHeld-out pairs that the cached teachers themselves tell right, by log p\\* - l_ref: {told}."


def _introduction(results: Results) -> str:
    seeds, settings, choices = results["seeds"], results["settings"], choices_of(results, "")
    parts = [*seeds.values(), *results["few_seeds"].values()]
    return INTRODUCTION.format(
        command=results["command"],
        seeds=", ".join(seeds),
        minutes=sum(part["cpu_seconds"] for part in parts) / 60,
        samples=20 * settings["samples_per_prompt"],
        steps=settings["pairs"] // BATCH_SIZE,
        start=_text(interval([seed["reference"]["reward"] for seed in seeds.values()])),
        start_tokens=interval([seed["reference"]["tokens"] for seed in seeds.values()]).mean,
        betas=", ".join(f"{beta:g}" for beta in DPO_BETAS),
        dpo_rate=choices["rates"]["dpo"],
        beta=choices["beta"],
        teacher_rate=choices["teacher_rate"],
        **settings,
    )


def _few_text(results: Results) -> str:
    pairs, choices = results["settings"]["few_pairs"], choices_of(results, f", {FEW}")
    return FEW_TEXT.format(
        pairs=pairs,
        steps=pairs // BATCH_SIZE,
        beta=choices["beta"],
        teacher_rate=choices["teacher_rate"],
        dpo_rate=choices["rates"]["dpo"],
    )


def _runs_text(results: Results) -> str:
    target, few_target = (
        _text(interval([target_of(results, seed, f"dpo{ending}") for seed in seeds_of(results)])) for ending in ENDINGS
    )
    beta, few_beta = (choices_of(results, ending)["dpo_beta"] for ending in ENDINGS)
    return RUNS.format(target=target, beta=beta, few_target=few_target, few_beta=few_beta)


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
