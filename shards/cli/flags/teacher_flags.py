"""The flags that choose a teacher, the same in every command: as fields of options, and for argparse."""

import argparse
from dataclasses import dataclass
from typing import Literal, get_args

from shards.cli.command import flag
from shards.format.nodes import MIN_STRENGTH
from shards.format.plan import Plan
from shards.format.schema import ANCHORS, NEGATIVES
from shards.teacher.served import lacks
from shards.teacher.spec import PRESETS, Strength, TeacherSpec

FIELDS = (
    *("anchor", "negative", "strength", "beta", "gain", "kl_coef", "min_strength", "max_weight"),
    *("learned_offset", "learned_slope"),
)
MIN_STRENGTH_HELP = "strength where dpo and negative agree (D_t = 0)"
MAX_WEIGHT_HELP = "cap of a token's weight lambda_t = beta / w_t"


@dataclass(kw_only=True)
class TeacherFlags:
    """Option fields that override the named teacher's."""

    teacher: Literal["aligndistil", "adaptive", "contrastive", "linear"] = flag("aligndistil", "a named teacher")
    anchor: Literal["dpo", "reference"] | None = flag(None, "what the teacher starts from; default: the teacher's")
    negative: Literal["reverse", "reference"] | None = flag(None, "what it moves away from; default: the teacher's")
    strength: Literal["adaptive", "constant"] | None = flag(None, "gain * D_t + min_strength, or beta / kl_coef")
    beta: float = flag(0.1, "reward scale of the DPO models")
    gain: float = flag(10.0, "growth of an adaptive strength with D_t")
    kl_coef: float = flag(0.05, "weight of the KL penalty of a constant strength")
    min_strength: float = flag(MIN_STRENGTH, MIN_STRENGTH_HELP)
    max_weight: float | None = flag(None, f"{MAX_WEIGHT_HELP}; default: none")

    @property
    def spec(self) -> TeacherSpec:
        """The preset with the given fields replaced. Raises OptionError for values out of range."""
        chosen = {name: getattr(self, name, None) for name in FIELDS}
        return TeacherSpec.preset(self.teacher, **{name: value for name, value in chosen.items() if value is not None})


def add_teacher_flags(parser: argparse.ArgumentParser, *, default: str = "the first that the cache serves") -> None:
    """--teacher and the fields that override it, all without a default, so that given ones can be recognised.

    default: in words, the teacher if --teacher is not given.
    """
    parser.add_argument("--teacher", choices=PRESETS, help=f"a named teacher; default: {default}")
    parser.add_argument("--anchor", choices=ANCHORS, help="what the teacher starts from; default: the teacher's")
    parser.add_argument("--negative", choices=NEGATIVES, help="what it moves away from; default: the teacher's")
    parser.add_argument(
        "--strength", choices=get_args(Strength), help="how w_t is computed; learned needs its two numbers"
    )
    parser.add_argument("--beta", type=float, help="reward scale of the DPO models; default: the teacher's, 0.1")
    parser.add_argument(
        "--gain", type=float, help="growth of an adaptive strength with D_t; default: the teacher's, 10"
    )
    parser.add_argument(
        "--kl_coef", "--kl-coef", type=float, help="weight of the KL penalty of a constant strength; default 0.05"
    )
    parser.add_argument(
        "--min_strength", "--min-strength", type=float, help=f"{MIN_STRENGTH_HELP}; default: the teacher's, 1e-3"
    )
    parser.add_argument("--max_weight", "--max-weight", type=float, help=f"{MAX_WEIGHT_HELP}; default: none")
    for name in ("offset", "slope"):
        flags = (f"--learned_{name}", f"--learned-{name}")
        parser.add_argument(
            *flags, type=float, help=f"{name} of a learned strength, as a run or shards.learn printed it"
        )


def teacher_of(options: argparse.Namespace, plan: Plan) -> TeacherSpec | None:
    """The teacher of the flags: without --teacher the first preset that the cache serves with the other flags.

    A preset that would ignore a given --gain, --min_strength or --kl_coef does not count. None if no flag was given and
    the cache serves no preset. A teacher that was asked for is returned even if it is not served: `ShardCache.check`
    refuses it. Raises OptionError for values out of range.
    """
    given = {name: getattr(options, name) for name in FIELDS if getattr(options, name) is not None}
    if options.teacher is not None:
        return TeacherSpec.preset(options.teacher, **given)
    used = {"gain": "adaptive", "min_strength": "adaptive", "kl_coef": "constant"}
    wanted = {how for name, how in used.items() if name in given} if options.strength is None else set()
    specs = [TeacherSpec.preset(name, **given) for name in PRESETS]
    specs = [spec for spec in specs if len(wanted) != 1 or spec.strength in wanted]
    served = next((spec for spec in specs if lacks(plan, spec) is None), None)
    return specs[0] if served is None and given else served
