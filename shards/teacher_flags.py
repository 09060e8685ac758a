"""The flags that name a teacher, for commands that read a cache; spelled as `python -m student.train` has them."""

import argparse
from typing import get_args

from shards.manifest import Plan
from shards.schema import ANCHORS, NEGATIVES
from shards.teacher import PRESETS, Strength, TeacherSpec

FIELDS = ("anchor", "negative", "strength", "beta", "gain", "kl_coef", "learned_offset", "learned_slope")


def add_teacher_flags(parser: argparse.ArgumentParser, *, default: str = "the first that the cache serves") -> None:
    """--teacher and the fields that override it; none has a default, so that what was given can be told.

    default: which teacher it is without them, in words.
    """
    parser.add_argument("--teacher", choices=PRESETS, help=f"a named teacher; default: {default}")
    parser.add_argument("--anchor", choices=ANCHORS, help="what the teacher starts from; default: the teacher's")
    parser.add_argument("--negative", choices=NEGATIVES, help="what it moves away from; default: the teacher's")
    parser.add_argument(
        "--strength", choices=get_args(Strength), help="how w_t comes about; learned needs its two numbers"
    )
    parser.add_argument("--beta", type=float, help="reward scale of the DPO models; default: the teacher's, 0.1")
    parser.add_argument(
        "--gain", type=float, help="growth of an adaptive strength with D_t; default: the teacher's, 10"
    )
    parser.add_argument(
        "--kl_coef", "--kl-coef", type=float, help="weight of the KL penalty of a constant strength; default 0.05"
    )
    for name in ("offset", "slope"):
        flags = (f"--learned_{name}", f"--learned-{name}")
        parser.add_argument(
            *flags, type=float, help=f"{name} of a learned strength, as a run or shards.learn printed it"
        )


def teacher_of(options: argparse.Namespace, plan: Plan) -> TeacherSpec | None:
    """The teacher that the flags name: without --teacher the first preset that the cache serves with the other flags.

    A preset that would not use a --gain or --kl_coef that was given is no candidate. None where no flag was given and
    the cache serves no preset. A teacher that was asked for and is not served comes back all the same, for
    `ShardCache.check` to refuse. Raises OptionError for values out of range.
    """
    given = {name: getattr(options, name) for name in FIELDS if getattr(options, name) is not None}
    if options.teacher is not None:
        return TeacherSpec.preset(options.teacher, **given)
    used = {"gain": "adaptive", "kl_coef": "constant"}
    wanted = {how for name, how in used.items() if name in given} if options.strength is None else set()
    specs = [TeacherSpec.preset(name, **given) for name in PRESETS]
    specs = [spec for spec in specs if len(wanted) != 1 or spec.strength in wanted]
    served = next((spec for spec in specs if plan.lacks(spec) is None), None)
    return specs[0] if served is None and given else served
