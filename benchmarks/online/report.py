"""The results in words: two tables and a verdict. Pure functions of results.json."""

from collections.abc import Mapping
from typing import Any

GOAL = 0.01
"""Largest relative difference of a final metric between offline and online."""

NAMES = {"loss": "loss", "expected_reward": "reward", "kl_reference": "KL to the reference"}


def section(results: Mapping[str, Any], plot: str | None = None, *, heading: str = "##") -> str:
    """The Markdown section "Offline equals online"; plot: the picture's path, as seen from the page."""
    picture = [] if plot is None else [f"![loss, reward and KL of the student, online and offline]({plot})", ""]
    return "\n".join(
        [
            f"{heading} Offline equals online",
            "",
            *_introduction(results["settings"]),
            "",
            *picture,
            metrics_table(results),
            "",
            weights_table(results),
            "",
            *verdict(results),
            "",
        ]
    )


def metrics_table(results: Mapping[str, Any]) -> str:
    """Final metrics of both students for every teacher, their difference, and that of another seed."""
    lines = [
        "| teacher | on held-out responses | before | online | offline | difference | another seed | largest gap |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for preset, entry in results["presets"].items():
        for name, metric in entry["metrics"].items():
            values = (metric["online"][0], metric["online"][-1], metric["offline"][-1])
            shares = (metric["difference"], metric["other_seed_difference"], metric["curve_gap"])
            cells = [preset, NAMES[name], *map(_number, values), *map(_percent, shares)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def weights_table(results: Mapping[str, Any]) -> str:
    """The distances between the students' weights, and the effect of another seed; body: without embeddings."""
    lines = [
        "| teacher | online, from its start | offline to online | another seed to online | ratio | body's |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for preset, entry in results["presets"].items():
        weights = entry["weights"]
        distances = [_number(weights[name]) for name in ("moved", "offline", "other_seed")]
        ratios = [_percent(weights[name]) for name in ("ratio", "ratio_without_embeddings")]
        lines.append(f"| {' | '.join([preset, *distances, *ratios])} |")
    return "\n".join(lines)


def verdict(results: Mapping[str, Any]) -> list[str]:
    """Whether every final metric is within the goal, and the worst one; and the largest distance of weights."""
    differences = {
        (preset, name): metric["difference"]
        for preset, entry in results["presets"].items()
        for name, metric in entry["metrics"].items()
    }
    (preset, name), worst = max(differences.items(), key=lambda item: item[1])
    within = sum(difference <= GOAL for difference in differences.values())
    ratio, ratio_less = (
        max(entry["weights"][name] for entry in results["presets"].values())
        for name in ("ratio", "ratio_without_embeddings")
    )
    return [
        f"{within} of {len(differences)} final metrics are within {GOAL:.0%}; the largest difference is "
        f"{_percent(worst)} ({preset}, {NAMES[name]}).",
        f"The weights of the two students are at most {_percent(ratio)} as far apart as those of two online runs whose",
        f"data come in another order; {_percent(ratio_less)} without the embeddings.",
    ]


def _introduction(settings: Mapping[str, Any]) -> list[str]:
    return [
        "The same student is trained twice, with the same batches in the same order and the same hyperparameters: from",
        "the cache, and with live models, losses over the whole vocabulary and autograd (`benchmarks/online/live.py`).",
        "Both are measured in the same dense way on responses that neither was trained on. A third run, online too,",
        "has its data in another order: its difference shows what a seed changes. The largest gap is that between",
        "the two curves, as a share of the range of the online one.",
        "",
        f"{settings['parameters']:,} parameters, V = {settings['vocabulary_size']:,}, {settings['support_mean']:.0f} "
        f"tokens kept a position on average. {settings['responses']} responses ({settings['positions']:,}",
        f"tokens), {settings['steps']} steps of {settings['batch_size']}, learning rate {settings['learning_rate']:g}; "
        f"measured on {settings['held_out_responses']} responses ({settings['held_out_positions']:,}",
        f"tokens). {settings['device']}, float32.",
    ]


def _number(value: float) -> str:
    return f"{value:.4g}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%"
