"""A learned strength at the start of a run: fitted once, then part of the run's options."""

from pathlib import Path

from shards import TeacherSpec
from shards.errors import TeacherUnavailable
from shards.manifest import read_json
from shards.preferences import LearnedFit, find_pairs, fit
from student.data import CachedResponses
from student.options import DistillArguments
from student.processes import by_first_process
from student.run import RUN_FILE


def require_teacher(spec: TeacherSpec, dataset: CachedResponses) -> None:
    """Raise TeacherUnavailable or DataError where the caches cannot give a teacher, or the pairs to fit it on."""
    for cache in dataset.caches:
        if not spec.needs_fit:
            cache.check(spec)
        elif lacking := cache.plan.lacks_pair(spec):
            raise TeacherUnavailable(f"{cache.folder}: {lacking}")
        else:
            find_pairs(cache)


def take_fit(args: DistillArguments, checkpoint: Path | None) -> None:
    """Put the numbers of a whole checkpoint's learned strength into `args` where they have none.

    Where the checkpoint is of another run it is refused as ever, without a fit before that.
    """
    if checkpoint is not None and args.spec.needs_fit:
        teacher = read_json(checkpoint / RUN_FILE).get("teacher", {})
        args.learned_offset, args.learned_slope = (teacher.get(f"learned_{name}") for name in ("offset", "slope"))


def fit_strength(args: DistillArguments, dataset: CachedResponses) -> None:
    """Fit a learned strength that has no numbers yet on all pairs of the training caches, and put them into `args`.

    Whatever responses the student is trained on. The run's identity, its model card and its evaluation then hold
    them; a resumed run takes them from its checkpoint (`take_fit`), or fits the same ones. The first process fits, the
    others get the numbers. Does nothing for another strength.

    Raises DataError where a cache has no pairs, TeacherUnavailable where it does not serve the anchor and negative, on
    every process.
    """
    if not args.spec.needs_fit:
        return

    def work() -> LearnedFit:
        fitted = fit([(cache, find_pairs(cache)) for cache in dataset.caches], args.spec)
        print(f"learned strength: {fitted}")
        return fitted

    fitted = by_first_process(work)
    args.learned_offset, args.learned_slope = fitted.spec.learned_offset, fitted.spec.learned_slope
