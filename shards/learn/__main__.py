"""python -m shards.learn DIR: fits a learned strength to cached pairs, compares teachers on others; runs no model."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.cache import ShardCache
from shards.cli.command import OneLineErrors, run_command
from shards.cli.flags.cache_flags import add_cache_flags, room_of
from shards.cli.flags.quiet_flag import add_quiet_flag
from shards.cli.flags.teacher_flags import MIN_STRENGTH_HELP
from shards.cli.text import WIDTH
from shards.errors import OptionError
from shards.format.schema import ANCHORS, NEGATIVES
from shards.places.room import Room
from shards.preferences.pairs import (
    LearnedFit,
    PreferencePairs,
    accuracy,
    find_pairs,
    fit,
    held_out,
    preference_margins,
)
from shards.preferences.strength import log_sigmoid
from shards.progress import commanded
from shards.teacher.served import lacks
from shards.teacher.spec import PRESETS, TeacherSpec

NOTE = """
R of a teacher is sum_t [log p*_t(y_t) - l_ref(y_t)], of dpo sum_t [l_dpo(y_t) - l_ref(y_t)], of the reference the
response's log-prob. Accuracy: the share of pairs whose chosen response has the larger R. Nats per pair: the mean of
log sigmoid(R(chosen) - R(rejected)), which the fit maximises, and of the same with beta R, the scale at which DPO
models are trained. Guessing gives an accuracy of 0.5 and -0.693 nats."""


def judge(folder: str | Path, spec: TeacherSpec, share: float, room: Room | None = None) -> dict[str, Any]:
    """The fit on the pairs that are not held out, figures of the held-out ones by name, and the fit on all pairs.

    A preset that the cache does not serve has a reason instead of figures. Raises AlignDistilError.
    """
    cache = ShardCache(folder, room)
    pairs = find_pairs(cache)
    apart_P = held_out(pairs.pair_id, share)
    if apart_P.all() or not apart_P.any():
        raise OptionError(
            f"held_out: expected a share that leaves pairs on both sides, got {share:g}, "
            f"which holds out {apart_P.sum()} of {len(pairs)}"
        )
    fitted = fit([(cache, pairs.where(~apart_P))], spec)
    same = {name: getattr(spec, name) for name in ("beta", "gain", "kl_coef", "min_strength")}
    presets = {name: TeacherSpec.preset(name, **same) for name in PRESETS}
    reasons = {name: lacks(cache.plan, preset) for name, preset in presets.items()}
    served = {name: preset for name, preset in presets.items() if reasons[name] is None}
    return {
        "fit": fitted,
        "fit_on_all": fit([(cache, pairs)], spec),
        "held_out": _figures(cache, pairs.where(apart_P), served | {"learned": fitted.spec}, spec.beta),
        "held_out_pairs": int(apart_P.sum()),
        "not_served": {name: reason for name, reason in reasons.items() if reason is not None},
    }


def _figures(
    cache: ShardCache, pairs: PreferencePairs, specs: Mapping[str, TeacherSpec], beta: float
) -> dict[str, dict[str, float]]:
    return {
        name: {
            "accuracy": accuracy(margins_P),
            "log_likelihood": float(log_sigmoid(margins_P).mean()),
            "log_likelihood_at_beta": float(log_sigmoid(beta * margins_P).mean()),
        }
        for name, margins_P in preference_margins(cache, pairs, specs).items()
    }


def report_text(report: Mapping[str, Any], spec: TeacherSpec) -> str:
    """The report as a table."""
    lines = [
        f"learned strength of anchor {spec.anchor}, negative {spec.negative}",
        _wrapped("  fit        ", report["fit"]),
        _wrapped("  all pairs  ", report["fit_on_all"]),
        "",
        f"{report['held_out_pairs']:,} held-out pairs   accuracy   nats per pair   with beta {spec.beta:g}",
    ]
    width = lines[-1].index("accuracy")
    for name, row in report["held_out"].items():
        numbers = f"{row['accuracy']:8.3f}   {row['log_likelihood']:13.4f}   {row['log_likelihood_at_beta']:13.4f}"
        lines.append(f"  {name:<{width - 2}}{numbers}")
    lines += [f"  {name:<{width - 2}}not served: {reason}" for name, reason in report["not_served"].items()]
    return "\n".join([*lines, NOTE])


def _wrapped(head: str, fitted: LearnedFit) -> str:
    return textwrap.fill(str(fitted), WIDTH, initial_indent=head, subsequent_indent=" " * len(head))


def report_json(report: Mapping[str, Any]) -> str:
    """The report as one JSON object; nats, shares from 0 to 1."""
    plain = {name: _plain(value) if isinstance(value, LearnedFit) else value for name, value in report.items()}
    return json.dumps(plain, indent=2, allow_nan=False)


def _plain(fitted: LearnedFit) -> dict[str, Any]:
    spec = fitted.spec
    return {
        **{name: getattr(spec, name) for name in ("anchor", "negative", "beta", "learned_offset", "learned_slope")},
        **{name: getattr(fitted, name) for name in LearnedFit.__slots__ if name not in ("spec", "strength_quantiles")},
        "strength_quantiles": dict(zip(("p10", "p50", "p90"), fitted.strength_quantiles, strict=True)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = OneLineErrors(prog="python -m shards.learn", description=__doc__)
    add, default = parser.add_argument, TeacherSpec()
    add("folder", metavar="DIR", nargs="?", default="shards", help="folder or URL of the cache")
    add("--teacher", choices=PRESETS, default="aligndistil", help="a named teacher, with a learned strength instead")
    add("--anchor", choices=ANCHORS, help="what the teacher starts from; default: the named teacher's")
    add("--negative", choices=NEGATIVES, help="what it moves away from; default: the named teacher's")
    add("--beta", type=float, default=default.beta, help="reward scale of the DPO models")
    add("--gain", type=float, default=default.gain, help="gain of the presets in the comparison")
    add("--kl_coef", "--kl-coef", type=float, default=default.kl_coef, help="kl_coef of the presets in the comparison")
    add("--min_strength", "--min-strength", type=float, default=default.min_strength, help=MIN_STRENGTH_HELP)
    add("--held_out", "--held-out", type=float, default=0.2, help="share of the pairs that are left out of the fit")
    add_cache_flags(parser)
    add_quiet_flag(parser)
    add("--json", action="store_true", help="print a JSON object instead of the table")
    options = parser.parse_args(arguments)
    given = {name: getattr(options, name) for name in ("anchor", "negative") if getattr(options, name)}
    numbers = {name: getattr(options, name) for name in ("beta", "gain", "kl_coef", "min_strength")}
    spec = TeacherSpec.preset(options.teacher, strength="learned", **numbers, **given)
    with commanded(quiet=options.quiet):
        report = judge(options.folder, spec, options.held_out, room_of(options))
    print(report_json(report) if options.json else report_text(report, spec))


if __name__ == "__main__":
    run_command(main)
