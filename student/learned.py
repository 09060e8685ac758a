"""A learned strength at the start of a run: fitted once, then part of the run's options."""

from shards.preferences import LearnedFit, find_pairs, fit
from student.data import CachedResponses
from student.options import DistillArguments
from student.processes import by_first_process


def fit_strength(args: DistillArguments, dataset: CachedResponses) -> None:
    """Fit a learned strength that has no numbers yet on all pairs of the training caches, and put them into `args`.

    Whatever responses the student is trained on. The run's identity, its model card and its evaluation then hold
    them; a resumed run fits the same ones. The first process fits, the others get the numbers. Does nothing for
    another strength.

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
