"""Every figure that a run logs, described once: what it is, its unit, which way is good, and how it is printed.

The lines of a training, the model card, `student.report` and the table of docs/reporting.md are made from these.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from shards.teacher.compose import LOW_STRENGTH

Good = Literal["lower", "higher"]

EVALUATION = "eval_"
"""What transformers puts before the names of an evaluation's figures."""

NATS = "nats per token"
NATS_BY_SEQUENCE = "nats per sequence"
SHARE = "share"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure of the log.

    name      in trainer_state.json and where a run reports to
    label     what people call it, in a few words
    meaning   what it is, in one sentence without a full stop
    unit      empty for a plain number; `share` is printed in per cent
    good      which way the student gets better; None where neither is better in itself
    form      format specification of a value
    """

    name: str
    label: str
    meaning: str
    unit: str = ""
    good: Good | None = None
    form: str = ".3g"

    def text(self, value: float) -> str:
        """A value as it is printed, without its unit, but for per cent."""
        if not math.isfinite(value):
            return f"{value}"
        return format(value, self.form)

    @property
    def heading(self) -> str:
        """The label with its unit, as on an axis."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


def _nats(name: str, label: str, meaning: str, good: Good | None = None, form: str = ".3g") -> Figure:
    return Figure(name=name, label=label, meaning=meaning, unit=NATS, good=good, form=form)


def _share(name: str, label: str, meaning: str, good: Good | None = None) -> Figure:
    return Figure(name=name, label=label, meaning=meaning, unit=SHARE, good=good, form=".2%")


_WEAK = f"positions of strength under {LOW_STRENGTH:g}, as a part of the whole"

_TOKEN_FIGURES = (
    _nats("loss", "loss", "divergence of student and teacher, weighted by lambda_t: what the training lowers", "lower"),
    _nats("kl_teacher", "KL to the teacher", "KL(student || teacher), unweighted", "lower"),
    _nats("kl_reference", "KL to the reference", "how far the student has moved away: the price of the reward"),
    _nats("kl_dpo", "KL to dpo", "KL(student || dpo)"),
    _nats(
        *("expected_reward", "reward", "beta (log p_dpo - log p_reverse) of the tokens that the student would write"),
        *("higher", "+.3g"),
    ),
    _nats("dpo_expected_reward", "reward of dpo", "the same for the dpo model: a yardstick", form="+.3g"),
    Figure(name="strength", label="strength", meaning="w_t: how far the teacher goes beyond its anchor"),
    _share("support_mass", "mass on the kept tokens", "the part of the student that the targets describe", "higher"),
    _share("reference_support_mass", "the reference's mass on them", "the same for the reference, which does not move"),
    Figure(
        name="tail_bound",
        label="bound on the tail's error",
        meaning="how wrong the teacher's mass on the tokens that are not kept may be",
        unit="nats",
    ),
    _share("low_strength_loss_share", "weak positions in the loss", f"the loss from {_WEAK}"),
    _share("low_strength_gradient_share", "weak positions in the gradient", f"the gradient from {_WEAK}"),
)
_OF_A_SEQUENCE = ("kl_reference", "kl_dpo", "expected_reward", "dpo_expected_reward")
_OF_A_STEP = (
    Figure(name="learning_rate", label="learning rate", meaning="about how far a step moves a weight"),
    Figure(name="grad_norm", label="gradient norm", meaning="before it is clipped to max_grad_norm"),
    Figure(name="epoch", label="epoch", meaning="passes over the rows so far", form=".2f"),
    Figure(
        name="tokens_per_second",
        label="speed",
        meaning="response tokens trained on per second, over all processes",
        unit="tokens/s",
        good="higher",
        form=",.0f",
    ),
    Figure(name="loss_scale", label="loss scale", meaning="factor of fp16's loss scaling", form=",.0f"),
    Figure(
        name="skipped_steps",
        label="skipped steps",
        meaning="steps whose gradient left float16's range, since the previous line",
        form=".0f",
    ),
)
_OF_A_WHOLE = (
    Figure(name="train_loss", label="mean loss", meaning="mean of the loss over all steps", unit=NATS, good="lower"),
    Figure(name="total_flos", label="operations", meaning="transformers' estimate", unit="FLOP"),
    *(
        Figure(name=f"{prefix}runtime", label=f"time of the {what}", meaning="by the clock", unit="s", form=",.1f")
        for prefix, what in (("train_", "training"), (EVALUATION, "evaluation"))
    ),
    *(
        Figure(name=f"{prefix}{name}", label=f"{label}, {what}", meaning="mean over the whole", unit=unit, form=",.3g")
        for prefix, what in (("train_", "training"), (EVALUATION, "evaluation"))
        for name, label, unit in (
            ("samples_per_second", "sequences a second", "sequences/s"),
            ("steps_per_second", "steps a second", "steps/s"),
        )
    ),
)


def _by_sequence(figure: Figure) -> Figure:
    name, label = f"{figure.name}_per_sequence", f"{figure.label}, by sequence"
    return replace(figure, name=name, label=label, meaning="summed over a response", unit=NATS_BY_SEQUENCE)


FIGURES: Mapping[str, Figure] = MappingProxyType({
    figure.name: figure
    for figure in (
        *_TOKEN_FIGURES,
        *(_by_sequence(figure) for figure in _TOKEN_FIGURES if figure.name in _OF_A_SEQUENCE),
        *_OF_A_STEP,
        *_OF_A_WHOLE,
    )
})  # fmt: skip
"""Name -> figure. An evaluation's figures have EVALUATION before these names: `figure_of` gives them."""


def figure_of(name: str) -> Figure:
    """The figure of a name in the log. One that nobody described, such as another callback's, is shown as it is."""
    if name in FIGURES:
        return FIGURES[name]
    inner = name.removeprefix(EVALUATION)
    if inner != name and inner in FIGURES:
        figure = FIGURES[inner]
        return replace(figure, name=name, label=f"evaluation: {figure.label}")
    return Figure(name=name, label=name, meaning="not described here")


def figures_table() -> list[str]:
    """The table of docs/reporting.md, a line per figure."""
    lines = ["| figure | what it is | unit | better |", "|---|---|---|---|"]
    for figure in FIGURES.values():
        what = f"{figure.label}: {figure.meaning}".replace("||", "‖")
        lines.append(f"| `{figure.name}` | {what} | {figure.unit} | {figure.good or ''} |")
    return lines
