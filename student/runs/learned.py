"""Fits a learned strength at the start of a run; its numbers then belong to the run's options."""

from pathlib import Path

from shards import TeacherSpec
from shards.errors import TeacherUnavailable
from shards.format.manifest import read_json
from shards.preferences.pairs import LearnedFit, find_pairs, fit
from shards.say import say
from shards.teacher.served import lacks_for_fit
from student.data.responses import CachedResponses
from student.log.files import RUN_FILE
from student.options import DistillArguments
from student.runs.processes import by_first_process


def require_teacher(spec: TeacherSpec, dataset: CachedResponses) -> None:
    """Raise TeacherUnavailable or DataError if the caches cannot give a teacher, or the pairs to fit it on."""
    for cache in dataset.caches:
        if not spec.needs_fit:
            cache.check(spec)
        elif lacking := lacks_for_fit(cache.plan, spec):
            raise TeacherUnavailable(f"{cache.name}: {lacking}")
        else:
            find_pairs(cache)


def take_fit(args: DistillArguments, checkpoint: Path | None) -> None:
    """Copy the numbers of a complete checkpoint's learned strength into `args` if those have none.

    A checkpoint of another run is refused as usual, without a fit first.
    """
    if checkpoint is not None and args.spec.needs_fit:
        teacher = read_json(checkpoint / RUN_FILE).get("teacher", {})
        args.learned_offset, args.learned_slope = (teacher.get(f"learned_{name}") for name in ("offset", "slope"))


def fit_strength(args: DistillArguments, dataset: CachedResponses) -> None:
    """Fit a learned strength without numbers on all pairs of the training caches, and store the numbers in `args`.

    It does not depend on which responses the student trains on. The run's identity, its model card and its evaluation
    then have the numbers; a resumed run takes them from its checkpoint (`take_fit`), or fits the same ones. The first
    process fits and sends the numbers to the others. Does nothing for another strength.

    Raises, on every process, DataError if a cache has no pairs, TeacherUnavailable if it does not serve the anchor and
    negative.
    """
    if not args.spec.needs_fit:
        return

    def work() -> LearnedFit:
        fitted = fit([(cache, find_pairs(cache)) for cache in dataset.caches], args.spec)
        say(f"learned strength: {fitted}")
        return fitted

    fitted = by_first_process(work)
    args.learned_offset, args.learned_slope = fitted.spec.learned_offset, fitted.spec.learned_slope
