"""How each cost grows: one size after the other is multiplied, the rest stays the same."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.step.bench import make_bench
from benchmarks.step.measure import interleaved, measured_bytes, medians
from benchmarks.step.options import StepOptions
from benchmarks.step.steps import BUILD, DENSE, ONLINE, SPARSE, Steps

AXES: dict[str, Callable[[StepOptions, float], StepOptions]] = {
    "rows": lambda base, factor: replace(base, rows=_times(base.rows, factor)),
    "top_k": lambda base, factor: replace(base, top_k=_times(base.top_k, factor)),
    "vocabulary": lambda base, factor: replace(base, vocabulary=_times(base.vocabulary, factor)),
    "sequence_length": lambda base, factor: replace(
        base,
        sequence_length=_times(base.sequence_length, factor),
        prompt_tokens=_times(base.prompt_tokens, factor),
    ),
    "prompt_tokens": lambda base, factor: replace(base, prompt_tokens=_times(base.prompt_tokens, factor)),
    "hidden_size": lambda base, factor: replace(base, hidden_size=_times(base.hidden_size, factor)),
}
"""Name of the option -> the options with it multiplied. Prompts grow with their sequences."""
COMPARED = (SPARSE, DENSE, ONLINE, BUILD)
COMPARED_LOSSES = (SPARSE, DENSE)


def growth(options: StepOptions) -> dict[str, list[dict[str, Any]]]:
    """Axis -> a point for every factor of the options, ascending. Equal sizes are measured once, for all axes."""
    base = replace(options, loader_batches=2, out=str(Path(options.out) / "growth"))
    measured: dict[str, dict[str, Any]] = {}

    def point(axis: str, factor: float) -> dict[str, Any]:
        grown = AXES[axis](base, factor)
        if repr(grown) not in measured:
            measured[repr(grown)] = _measured(grown)
        return {"value": getattr(grown, axis)} | measured[repr(grown)]

    return {axis: [point(axis, factor) for factor in sorted(options.growth)] for axis in AXES}


def require_sizes(options: StepOptions) -> None:
    """Raise OptionError, before anything is measured, if a factor gives illegal options."""
    for multiplied in AXES.values():
        for factor in options.growth:
            multiplied(options, factor)


def _measured(options: StepOptions) -> dict[str, Any]:
    bench = make_bench(options)
    steps, device = Steps(bench), bench.trainer.model.device
    whole, losses = _only(steps.whole(), COMPARED), _only(steps.losses(), COMPARED_LOSSES)
    seconds = interleaved(whole, steps.clear, repeats=options.repeats, device=device)
    return {
        "parameters": bench.trainer.model.num_parameters(),
        "seconds": medians(seconds, device),
        "loss_bytes": {name: measured_bytes(steps, work) for name, work in losses.items()},
    }


def _only(works: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: works[name] for name in names}


def _times(size: int, factor: float) -> int:
    return max(1, round(size * factor))
