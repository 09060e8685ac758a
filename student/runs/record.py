"""Records a student's teacher and loss in a file beside its weights, so that an evaluation finds them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from transformers.utils.hub import cached_file

from shards import Divergence, ShardCache, TeacherSpec
from shards.errors import AlignDistilError, ModelError
from shards.format.manifest import read_json
from shards.format.plan import Plan
from shards.format.writer import write_json
from student.log.files import RECORD_FILE, RUN_FILE
from student.recipe import CHANGED

Reduction = Literal["sequence", "token"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Teacher and loss of a run, and the models that the teacher was composed from.

    models   role -> the plan's identity of its model; None if the file does not say, as in a checkpoint
    """

    spec: TeacherSpec
    divergence: Divergence
    reduction: Reduction
    models: Mapping[str, Any] | None

    def __str__(self) -> str:
        return f"{divergence_text(self.divergence)} to {self.spec}, mean by {self.reduction}"

    def other_models(self, plan: Plan) -> list[str]:
        """The roles with other weights than those that a cache was built from; none if the record does not say."""
        if self.models is None:
            return []
        here = plan.identity["models"]
        return [
            role for role in plan.roles if role in self.models and _weights(self.models[role]) != _weights(here[role])
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "teacher": self.spec.to_json(),
            "divergence": self.divergence.name,
            "jsd_weight": self.divergence.jsd_weight,
            "reduction": self.reduction,
            "models": self.models,
        }


def divergence_text(divergence: Divergence) -> str:
    return f"jsd of weight {divergence.jsd_weight:g}" if divergence.name == "jsd" else divergence.name


def write_record(
    folder: Path, args: Any, caches: Sequence[ShardCache], changed: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write the record of a run with these DistillArguments and caches; the caches are of one kind.

    changed: what was not the same all the time (`student.recipe`).
    """
    models = caches[0].plan.identity["models"]
    record = Record(spec=args.spec, divergence=args.loss_divergence, reduction=args.reduction, models=models)
    write_json(folder, RECORD_FILE, record.to_json() | ({CHANGED: list(changed)} if changed else {}))


def read_record(source: str) -> Record | None:
    """The record in a model's folder, or among its files on the hub; None if there is none.

    Raises ModelError for a record without a teacher.
    """
    file = next((file for name in (RECORD_FILE, RUN_FILE) if (file := _find(source, name)) is not None), None)
    if file is None:
        return None
    try:
        facts = read_json(file)
        reduction = facts["reduction"]
        if reduction not in get_args(Reduction):
            raise ValueError(f"a reduction of {reduction!r}")
        return Record(
            spec=TeacherSpec(**facts["teacher"]),
            divergence=Divergence(name=facts["divergence"], jsd_weight=facts["jsd_weight"]),
            reduction=reduction,
            models=None if facts.get("models") is None else dict(facts["models"]),
        )
    except (AlignDistilError, KeyError, TypeError, ValueError) as exc:
        what = f"no {exc}" if isinstance(exc, KeyError) else str(exc)
        raise ModelError(f"{source}/{file.name}: expected the teacher of a student, got {what}") from exc


def _find(source: str, name: str) -> Path | None:
    folder = Path(source)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors", "gated_repo")}
    found = cached_file(source, name, **quiet)
    return None if found is None else Path(found)


def _weights(facts: Mapping[str, Any]) -> tuple[Any, ...]:
    """The hashes of a model's weights and, for an adapter, of its base's."""
    base = facts.get("base")
    return (facts.get("weights_sha256"), *(_weights(base) if base else ()))
