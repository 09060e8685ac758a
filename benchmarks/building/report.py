"""The results as a section of Markdown. Pure functions of results.json."""

from collections.abc import Mapping, Sequence
from typing import Any

GOAL = {"cpu": 1.25, "cuda": 1.05}
"""The goal: largest ratio of a build to its floor, by device."""
AXES = {
    "pairs": "pairs",
    "top_k": "tokens kept, mean",
    "vocabulary": "vocabulary",
    "sequence_length": "sequence length",
    "prompt_tokens": "prompt's tokens",
    "hidden_size": "hidden size",
}


def section(results: Mapping[str, Any], picture: str | None = None) -> str:
    """The section "The build"."""
    settings = results["settings"]
    lines = [
        "## The build",
        "",
        f"`{settings['command']}`",
        "",
        f"{settings['machine']}; {settings['versions']}. Three Llamas of {settings['parameters']:,} parameters, random "
        f"weights, V = {settings['vocabulary']:,}, hidden size {settings['hidden_size']}, {settings['layers']} layers, "
        f"{settings['dtype']}; {settings['rows']} sequences of {settings['sequence_length']} tokens, "
        f"{settings['prompt_tokens']} of them the prompt's; {settings['support_mean']:.0f} tokens kept a position. "
        f"Medians of {settings['repeats']}, measured in turn, in seconds of {settings['seconds_of']}.",
        "",
        *parts_table(results["seconds"]),
        "",
        *verdict(results["seconds"], settings["device_type"]),
    ]
    if results["growth"]:
        lines += ["", "### How its cost grows", "", *growth_table(results["growth"])]
        lines += [] if picture is None else ["", f"![seconds of a build and of its floor against each size]({picture})"]
    return "\n".join([*lines, ""])


def parts(seconds: Mapping[str, float]) -> dict[str, float]:
    """What a build does beyond its floor, seconds by name."""
    return {
        "log-probs: normalisers, and the check for what is not finite": seconds["chunks"] - seconds["heads"],
        "D_t, and a score for every token": seconds["token_scores"],
        "choosing tokens; their values, tails and log partitions": seconds["values"] - seconds["distances"],
        "encoding, compressing, writing": seconds["write"],
        "reading back and checking": seconds["check"],
    }


def whole(seconds: Mapping[str, float]) -> float:
    """A build of the batch, one thing after the other."""
    return seconds["score"] + seconds["write"] + seconds["check"]


def parts_table(seconds: Mapping[str, float]) -> list[str]:
    rows = [
        ("**floor**: three bare forward passes", seconds["floor"]),
        ("of which bodies", seconds["bodies"]),
        ("of which output layers, at response positions", seconds["heads"]),
        *parts(seconds).items(),
        ("**build**: scoring, writing, checking", whole(seconds)),
        ("*bodies, the prompt of a pair run once (`--share_prompts`)*", seconds["shared_bodies"]),
        ("*scoring, the prompt of a pair run once*", seconds["shared_score"]),
    ]
    lines = ["| | seconds | to the floor |", "|---|--:|--:|"]
    return lines + [f"| {name} | {value:.3f} | {value / seconds['floor']:.2f} |" for name, value in rows]


def verdict(seconds: Mapping[str, float], device_type: str) -> list[str]:
    goal, floor = GOAL[device_type], seconds["floor"]
    scored, ratio = seconds["score"] / floor, whole(seconds) / floor
    spared = 1 - seconds["shared_score"] / seconds["score"]
    change = f"{abs(spared):.0%} {'less' if spared > 0 else 'more'}"
    return [
        f"* A build takes {ratio:.2f} of its floor, one thing after the other; asked for {goal:g} or less, "
        f"{'reached' if ratio <= goal else 'missed'}.",
        f"* Writing runs beside the next shard's forward passes: scoring alone is {scored:.2f} of the floor.",
        f"* With `--responses both --share_prompts true` scoring takes {change}.",
    ]


def growth_table(growth: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    lines = [
        "| | | floor, s | build, s | build / floor | with prompts shared | bytes a position |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for axis, points in growth.items():
        for point in points:
            seconds = point["seconds"]
            floor, build = seconds["floor"], whole(seconds)
            sharing = build - seconds["score"] + seconds["shared_score"]
            cells = [AXES[axis], f"{point['value']:,}", f"{floor:.3f}", f"{build:.3f}", f"{build / floor:.2f}"]
            cells += [f"{sharing / floor:.2f}", f"{point['bytes']:.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return lines
