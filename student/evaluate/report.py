"""The evaluation as a table for a terminal of 100 columns, with the same numbers as its JSON."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from shards.cli.text import WIDTH
from shards.cli.trust_text import number

LABELS = {
    "kl_reference": "KL to the reference, per token",
    "kl_reference_per_sequence": "KL to the reference, per response",
    "divergence_teacher": "{divergence} to the teacher, per token",
    "divergence_teacher_by_sequence": "{divergence} to the teacher, by response",
    "divergence_own": "what it records, to its own teacher",
    "expected_reward": "expected contrastive reward, per token",
    "support_mass": "mass on the kept tokens",
    "implicit_reward_chosen": "implicit reward, chosen",
    "implicit_reward_rejected": "implicit reward, rejected",
    "implicit_reward_margin": "implicit reward, chosen - rejected",
    "contrastive_reward_chosen": "contrastive reward, chosen",
    "contrastive_reward_rejected": "contrastive reward, rejected",
    "contrastive_reward_margin": "contrastive reward, chosen - rejected",
    "tokens_chosen": "response tokens, chosen",
    "tokens_rejected": "response tokens, rejected",
}
RANKED = {
    "teacher": "teacher",
    "dpo": "implicit reward of dpo",
    "contrastive": "contrastive reward",
}
NOTE = """
Nats. KL and divergence are over buckets, every kept token and the tail: lower bounds of those over the whole
vocabulary, equal to them if all tokens are kept. By response: the mean of the responses' own means, as in the loss
with --reduction sequence. Both are measured at the positions of the cached responses, not of the model's own. The
implicit reward is beta sum_t [log p(y_t) - l_ref(y_t)] of the cached response; it would estimate a KL only on the
model's own samples. The contrastive reward is beta sum_t [l_dpo(y_t) - l_{contrast}(y_t)]. A preference is told right
if the chosen response has the larger sum; a difference under {tie:g} nat is a tie, which counts as half a
pair. ±: standard error over pairs; of a difference, paired. Intervals: 95%, Wilson."""
COMPACT_NOTE = """
The cache's values are compact, so l_ref(y_t) is rounded (docs/format.md), and a log-ratio to it is off by that. It
cancels in a difference of two models; --against the reference gives rewards without it."""

LABEL_WIDTH, NAME_WIDTH = 40, 9
_HEADS = {"model": "model", "against": "against", "difference": "model - against"}


def labels(models: int, against: bool) -> list[str]:
    """The names of the models in a table, in the order of the command line."""
    numbered = ["model"] if models == 1 else [f"model {number}" for number in range(1, models + 1)]
    return [*numbered, *(["against"] if against else [])]


def report_text(report: Mapping[str, Any]) -> str:
    """The whole report. Parts that were not requested are left out."""
    parts = []
    if "cache" in report:
        parts += [
            "\n".join(lines) for lines in (_head(report), _quantities(report), _cached(report), _accuracy(report))
        ]
    if "samples" in report:
        parts.append("\n".join(_samples(report["samples"])))
    if "cache" in report:
        note = NOTE.format(contrast=report["contrast"], tie=report["tie_nats"])
        note = (note + (COMPACT_NOTE if report["values"] == "compact" else "")).strip().replace("\n", " ")
        parts.append(textwrap.fill(note, WIDTH))
    return "\n\n".join(parts)


def _named(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Name of a model in the table -> its entry."""
    against = [] if report["against"] is None else [report["against"]]
    return dict(zip(labels(len(report["models"]), bool(against)), [*report["models"], *against], strict=True))


def _head(report: Mapping[str, Any]) -> Iterator[str]:
    for name, entry in _named(report).items():
        yield from _labelled(name, f"{entry['model']}, {entry['dtype']}; records {entry['recorded_text']}")
    sizes = f"{report['responses']:,} responses of {report['positions']:,} tokens, {report['pairs']:,} pairs"
    yield from _labelled("cache", f"{report['cache']}, {sizes}")
    yield from _labelled("teacher", f"{report['teacher_text']}: {report['teacher_source']}")
    yield from _labelled("by", f"{report['divergence']}: {report['divergence_source']}")


def _labelled(name: str, text: str) -> Iterator[str]:
    """A line that begins with a name, wrapped between words."""
    indent = " " * (NAME_WIDTH + 1)
    head = f"{name:<{NAME_WIDTH}} "
    yield from textwrap.wrap(
        text, WIDTH, initial_indent=head, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _quantities(report: Mapping[str, Any]) -> Iterator[str]:
    """A line for every quantity and model, grouped by quantity."""
    named = _named(report)
    yield " " * (LABEL_WIDTH + NAME_WIDTH) + f"{'mean':>20}" + (f"{'- against':>20}" if "against" in named else "")
    for quantity, text in LABELS.items():
        label = text.format(divergence=report["divergence"])
        for name, entry in named.items():
            if (row := entry["quantities"].get(quantity)) is not None:
                numbers = "".join(f"{estimate_text(row[c]):>20}" for c in ("model", "difference") if c in row)
                yield f"{label:<{LABEL_WIDTH}}{name:<{NAME_WIDTH}}{numbers}"
                label = ""


def _cached(report: Mapping[str, Any]) -> Iterator[str]:
    yield "in the cache, the same for every model"
    for name, row in report["models"][0]["cached"].items():
        yield f"{LABELS[name]:<{LABEL_WIDTH + NAME_WIDTH}}{estimate_text(row):>20}"


def _accuracy(report: Mapping[str, Any]) -> Iterator[str]:
    named = _named(report)
    cached = report["models"][0]["accuracy"]
    if cached is None:
        yield "preference accuracy: no pair of a chosen and a rejected response here; build with --responses both"
        return
    heads = ("right", "tied", "of", "accuracy", "95% interval")
    line = f"{'preferences told right by':<{LABEL_WIDTH}}" + "".join(f"{head:>9}" for head in heads[:3])
    yield f"{line}{heads[3]:>11}{heads[4]:>19}"
    rows = {f"implicit reward of {name}": entry["accuracy"]["model"] for name, entry in named.items()}
    rows |= {label: cached[name] for name, label in RANKED.items()}
    yield from (f"{label:<{LABEL_WIDTH}}{_counts(row)}" for label, row in rows.items())
    for name, entry in named.items():
        if "difference" in entry["accuracy"]:
            difference = estimate_text(entry["accuracy"]["difference"])
            yield f"{f'{name} - against':<{LABEL_WIDTH}}{'':>27}{difference:>20}"


def _counts(row: Mapping[str, Any]) -> str:
    interval = f"{row['low']:.3f} to {row['high']:.3f}"
    return f"{row['wins']:>9,}{row['ties']:>9,}{row['total']:>9,}{row['share']:>11.4f}{interval:>19}"


def _samples(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"{'samples':<9}{found['file']}"
    if "win_rate" in found:
        yield f"{'against':<9}{found['file_against']}"
    yield f"{'scorer':<9}{found['scorer']}"
    columns = [name for name in _HEADS if name in found["score"]]
    yield " " * LABEL_WIDTH + "".join(f"{_HEADS[name]:>20}" for name in columns)
    for name, label in (("score", "score"), ("characters", "characters of the completion")):
        yield f"{label:<{LABEL_WIDTH}}" + "".join(f"{estimate_text(found[name][column]):>20}" for column in columns)
    if "win_rate" in found:
        yield from _win_rate(found["win_rate"])


def _win_rate(row: Mapping[str, Any]) -> Iterator[str]:
    shares = " / ".join(f"{row[name] / row['total']:.3f}" for name in ("wins", "ties", "losses"))
    interval = f"{row['low']:.3f} to {row['high']:.3f} (95%)"
    yield f"{'win / tie / loss':<{LABEL_WIDTH}}{shares:>20}"
    yield f"{'win rate, a tie counting half':<{LABEL_WIDTH}}{row['share']:>20.4f}   {interval}"
    matched = f"{row['prompts']:,} prompts"
    left = f"without a match {row['unmatched']:,}, {row['unmatched_against']:,}"
    yield f"{'matched':<{LABEL_WIDTH}}{matched:>20}   {row['total']:,} samples; {left}"


def estimate_text(estimate: Mapping[str, Any]) -> str:
    """mean ± standard error."""
    error = estimate["standard_error"]
    return number(estimate["mean"]) + ("" if error is None else f" ±{number(error):>7}")
