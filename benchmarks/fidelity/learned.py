"""The learned strength: how models, presets and fitted strengths judge pairs that no fit used."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from precompute.build.build import build
from precompute.build.options import BuildOptions
from shards import TeacherSpec
from shards.format.schema import Role
from shards.learn.__main__ import judge

HELD_OUT = 0.5
FITTED = {"learned, dpo/reverse": "aligndistil", "learned, reference/reference": "adaptive"}
"""Name of a fit -> the teacher that gives its anchor and negative."""


def judged(
    folders: Mapping[Role, Path], data: str, cache: Path, *, pairs: int, max_length: int, top_k: int
) -> dict[str, Any]:
    """A cache of both responses of the data's first rows, and what `python -m shards.learn` finds in it."""
    build(
        BuildOptions(
            models=[f"{role}={folder}" for role, folder in folders.items()],
            data=data,
            out=str(cache),
            responses="both",
            limit=pairs,
            max_length=max_length,
            top_k=top_k,
            dtype="float32",
        )
    )
    reports = {
        name: judge(cache, TeacherSpec.preset(preset, strength="learned"), HELD_OUT) for name, preset in FITTED.items()
    }
    first = next(iter(reports.values()))
    others = {name: row for name, row in first["held_out"].items() if name != "learned"}
    return {
        "pairs": first["fit"].pairs,
        "held_out_pairs": first["held_out_pairs"],
        "figures": others | {name: report["held_out"]["learned"] for name, report in reports.items()},
        "fits": {name: str(report["fit"]) for name, report in reports.items()},
    }


def learned_lines(learned: Mapping[str, Any]) -> list[str]:
    """How the held-out pairs are judged, and what was fitted to the others."""
    return [
        f"Fitted to {learned['pairs']:,} pairs, judged by {learned['held_out_pairs']:,} others. Accuracy: the share of "
        "pairs whose chosen response has the larger R; nats: mean log-likelihood of R's margin, and of beta times it "
        "([teacher.md](teacher.md#a-learned-strength)).",
        "",
        "| | accuracy | nats a pair | nats a pair, beta R |",
        "|---|--:|--:|--:|",
        *(
            f"| {name} | {row['accuracy']:.3f} | {row['log_likelihood']:.4f} | {row['log_likelihood_at_beta']:.4f} |"
            for name, row in learned["figures"].items()
        ),
        "",
        *(f"* {name}: {found}." for name, found in learned["fits"].items()),
    ]
