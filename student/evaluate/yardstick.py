"""Chooses the one teacher that all models of a table are measured against, and says where it comes from."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from shards import Divergence, ShardCache, TeacherSpec
from shards.cli.flags.teacher_flags import FIELDS, teacher_of
from shards.errors import TeacherUnavailable
from shards.teacher.served import lacks
from student.runs.record import Record

DEFAULT = "the default, since no model here records its own"


@dataclass(frozen=True, slots=True, kw_only=True)
class Yardstick:
    """One teacher and one divergence for all models of a table, and in words the source of each."""

    spec: TeacherSpec
    spec_source: str
    divergence: Divergence
    divergence_source: str

    def is_of(self, record: Record) -> bool:
        return (self.spec, self.divergence) == (record.spec, record.divergence)


def choose(options: argparse.Namespace, cache: ShardCache, recorded: Mapping[str, Record | None]) -> Yardstick:
    """The yardstick for models with these records, by name, in the order of the command line.

    Flags win, field by field. Other fields come from the first record, or with --teacher from the preset. Raises
    TeacherUnavailable if the cache does not serve the teacher, OptionError for values out of range.
    """
    name, record = next(((name, record) for name, record in recorded.items() if record is not None), ("", None))
    given = {field: getattr(options, field) for field in FIELDS if getattr(options, field) is not None}
    loss = {
        field: getattr(options, field) for field in ("divergence", "jsd_weight") if getattr(options, field) is not None
    }
    if record is not None and options.teacher is None:
        spec, rest = _changed(record.spec, given), f"as {name} records"
    else:
        spec, rest = _preset(options, cache), DEFAULT if record is None else "the preset's"
    if options.teacher is not None:
        given = {"teacher": options.teacher} | given
    divergence = Divergence() if record is None else record.divergence
    found = Yardstick(
        spec=spec,
        spec_source=_source(given, rest),
        divergence=replace(divergence, **{"name" if field == "divergence" else field: loss[field] for field in loss}),
        divergence_source=_source(loss, DEFAULT if record is None else f"as {name} records"),
    )
    if (lacking := lacks(cache.plan, spec)) is not None:
        raise TeacherUnavailable(f"{cache.name}: {lacking} (the teacher is {found.spec_source})")
    return found


def _preset(options: argparse.Namespace, cache: ShardCache) -> TeacherSpec:
    spec = teacher_of(options, cache.plan)
    if spec is None:
        raise TeacherUnavailable(f"{cache.name}: serves no named teacher; name one with --anchor and --negative")
    return spec


def _changed(spec: TeacherSpec, given: Mapping[str, Any]) -> TeacherSpec:
    """The recorded teacher with the given fields replaced; another strength drops the numbers of a learned one."""
    fitted = {} if given.get("strength") in (None, "learned") else {"learned_offset": None, "learned_slope": None}
    return replace(spec, **fitted | dict(given))


def _source(given: Mapping[str, Any], rest: str) -> str:
    flags = " ".join(f"--{name} {value}" for name, value in given.items())
    if not given:
        return rest
    return f"{flags}, and the defaults" if rest == DEFAULT else f"{flags}, and otherwise {rest}"
