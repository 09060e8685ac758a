"""The demo's table, its files and its verdict."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import hypot
from pathlib import Path
from typing import Any

from examples.demo.evaluate import Quality

REQUIRED_STANDARD_ERRORS = 5.0
EXPLANATION = """\
true reward     mean over responses sampled for prompts about held-out dishes, with its standard error; 3 is the best
KL              sum over a sampled response of the full-vocabulary KL(model || reference) at each token, nats; the mean
accuracy        held-out pairs whose chosen response gained more log-prob over the reference's than the rejected one
                (for the reference: has the higher log-prob); the true reward itself agrees with {ceiling:.1%}"""


def results_text(qualities: Mapping[str, Quality], *, ceiling: float) -> str:
    """The table, what its columns mean, and the first responses of every model."""
    lines = [
        "| model            | true reward  | KL to the reference | preference accuracy |",
        "|------------------|-------------:|--------------------:|--------------------:|",
    ]
    for name, quality in qualities.items():
        reward = f"{quality.true_reward:.2f} ± {quality.standard_error:.2f}"
        lines.append(f"| {name:16} | {reward:>12} | {quality.kl_nats:>19.2f} | {quality.accuracy:>19.1%} |")
    lines += ["", "```", EXPLANATION.format(ceiling=ceiling)]
    samples = [quality.samples for quality in qualities.values()]
    for asked in zip(*samples, strict=True):
        lines += ["", asked[0].prompt]
        lines += [
            f"  {name:16} {sample.true_reward:+.0f}  {sample.response.strip()}"
            for name, sample in zip(qualities, asked, strict=True)
        ]
    return "\n".join([*lines, "```"])


def require_progress(qualities: Mapping[str, Quality]) -> None:
    """End with an error unless every student's true reward is far above the reference's."""
    reference = qualities["reference"]
    for name, quality in qualities.items():
        gained = quality.true_reward - reference.true_reward
        error = hypot(quality.standard_error, reference.standard_error)
        if name.startswith("student") and gained < REQUIRED_STANDARD_ERRORS * error:
            sys.exit(
                f"demo: {name}: expected a true reward {REQUIRED_STANDARD_ERRORS:.0f} standard errors above the "
                f"reference's, got {gained:+.2f} with a standard error of {error:.2f}"
            )


def write_json(path: Path, qualities: Mapping[str, Quality]) -> None:
    rows: dict[str, Any] = {name: asdict(quality) for name, quality in qualities.items()}
    path.write_text(json.dumps(rows, indent=1) + "\n")


def write_jsonl(path: Path, rows: Sequence[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
