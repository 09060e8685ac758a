"""The measured trust as text: the table of `shards.inspect`, and the first lines of a student's run."""

from shards.cli.text import labelled
from shards.teacher.trust import LOOSE_NATS, LOW_SUPPORT_MASS, STRONG, WEAK, Trust
from shards.teacher.verdict import verdict

GOOD_TEXT = "coverage, nodes and strength are within the limits of docs/teacher.md"
TABLE = {
    "coverage_teacher": "the teacher's mass on the kept tokens",
    "coverage_reference": "the reference's mass on the kept tokens",
    "tail_mass": "the teacher's mass on all others",
    "tail_bound": "bound on the error of the tail's log partition, nats",
    "logprob_bound": "bound on the error of log p*, nats",
    "strength": "w_t",
}
"""The histograms shown as numbers, and their meanings."""


def sampled(rows: int, total: int, *, few_shards: bool = False) -> str:
    """How many rows were looked at. few_shards: as `shards.spread.spread_in_few` chooses them."""
    if rows == total:
        return f"all {total:,} responses"
    return f"{rows:,} of {total:,} responses, {'of a few shards' if few_shards else 'evenly spread'}"


def shares(trust: Trust) -> list[tuple[str, str]]:
    """(share of the response positions, the condition that holds there)."""
    weak = f"w_t under {WEAK:g}; they carry {trust.weak_loss_share:.1%} of the loss at the reference"
    return [
        (f"{trust.thin_share:.1%}", f"coverage under {LOW_SUPPORT_MASS:g}"),
        (f"{trust.loose_share:.1%}", f"log p* may be over {LOOSE_NATS:g} nat off"),
        (f"{trust.strong_share:.1%}", f"w_t over {STRONG:g}"),
        (f"{trust.weak_share:.1%}", weak),
    ]


def number(value: float) -> str:
    """Four decimals, or scientific notation if these would hide the number."""
    return f"{value:.0e}" if 0 < abs(value) < 5e-4 else f"{value:.4f}"


def trust_table(trust: Trust, sample: str) -> str:
    """Distributions, shares over the thresholds, and the verdict, for a terminal of 100 columns."""
    word, reasons = verdict(trust)
    summaries = {name: trust.histograms[name].summary() for name in TABLE}
    lines = [*labelled("trust", [f"{trust.spec}", f"on {sample}, {trust.positions:,} positions"]), ""]
    lines.append(" " * 18 + "".join(f"{head:>9}" for head in next(iter(summaries.values()))))
    lines += [f"{name:<18}" + "".join(f"{number(v):>9}" for v in row.values()) for name, row in summaries.items()]
    lines += ["", *labelled("positions", [f"{share:<7} {what}" for share, what in shares(trust)])]
    return "\n".join([*lines, *labelled("verdict", [headline(word, reasons), *(f"- {text}" for text in reasons)])])


def trust_lines(trust: Trust, sample: str) -> dict[str, str]:
    """Label -> text: coverage, error bound for the strength in use, precision of the bodies, and the verdict with its
    reasons, a line each."""
    word, reasons = verdict(trust)
    bound = trust.histograms["logprob_bound"]
    return {
        "coverage": f"{trust.mean('coverage_teacher'):.4f} of the teacher's mass, "
        f"{trust.mean('coverage_reference'):.4f} of the reference's, on {sample}",
        "bound": f"log p* is off by {number(bound.mean)} nat at most on average, {number(bound.quantile(0.99))} at "
        f"99% of the positions; the tail's log partition by {number(trust.mean('tail_bound'))}",
        **({} if trust.precision is None else {"bodies": str(trust.precision)}),
        "verdict": "\n".join([headline(word, reasons), *(f"- {text}" for text in reasons)]),
    }


def headline(word: str, reasons: tuple[str, ...]) -> str:
    """The verdict's word, and for a good one its meaning."""
    return word if reasons else f"{word}: {GOOD_TEXT}"
