"""Defects planted on purpose: what a resumed run must not do."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MappingProxyType
from typing import Any
from unittest import mock

from student import trainer
from student.data.loading import Loading
from student.data.order import GlobalBatchSampler
from student.runs import resumable
from student.runs.resumable import ResumableTrainer


@contextmanager
def epoch_not_given() -> Iterator[None]:
    """The sampler of a run that resumes does not hear of its epochs."""
    plain = trainer._Steps.on_epoch_begin

    def begin(self: Any, *args: Any, **kwargs: Any) -> None:
        if not self.trainer._initial_global_step:
            plain(self, *args, **kwargs)

    with mock.patch.object(trainer._Steps, "on_epoch_begin", begin):
        yield


@contextmanager
def micro_batch_skipped_twice() -> Iterator[None]:
    """The sampler makes one micro-batch less than there are after those that are skipped."""
    plain = GlobalBatchSampler._items

    def items(self: Any, size: int, mine: slice, skips: int = 0) -> Any:
        return plain(self, size, mine, skips + (skips > 0))

    with mock.patch.object(GlobalBatchSampler, "_items", items):
        yield


@contextmanager
def random_state_not_restored() -> Iterator[None]:
    with mock.patch.object(ResumableTrainer, "_load_rng_state", lambda self, checkpoint: None):
        yield


@contextmanager
def schedule_one_step_off() -> Iterator[None]:
    plain = ResumableTrainer._load_optimizer_and_scheduler

    def load(self: Any, checkpoint: str | None) -> None:
        plain(self, checkpoint)
        if checkpoint is not None:
            self.lr_scheduler.step()

    with mock.patch.object(ResumableTrainer, "_load_optimizer_and_scheduler", load):
        yield


@contextmanager
def seed_of_workers_from_the_common_state() -> Iterator[None]:
    """What dropout drops then depends on how many loaders were made."""
    plain = Loading.loader

    def loader(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = plain(self, *args, **kwargs)
        made.generator = None
        return made

    with mock.patch.object(Loading, "loader", loader):
        yield


@contextmanager
def worker_errors_stay_wrapped() -> Iterator[None]:
    with mock.patch.object(resumable, "naming_workers", nullcontext):
        yield


Defects = Mapping[str, Callable[[], AbstractContextManager[object]]]

OF_A_RESUME: Defects = MappingProxyType({
    "the epoch is not given to the sampler on a resume": epoch_not_given,
    "a micro-batch is skipped twice": micro_batch_skipped_twice,
    "the random state is not restored": random_state_not_restored,
    "the schedule is one step off": schedule_one_step_off,
    "the loader takes its seed from the common random state": seed_of_workers_from_the_common_state,
})  # fmt: skip

OF_A_LOADER: Defects = MappingProxyType({"a worker's error stays wrapped": worker_errors_stay_wrapped})
