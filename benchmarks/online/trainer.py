"""OnlineTrainer: transformers' Trainer with live models in its loss. Everything else is Trainer's."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks.online.live import TokenRow, collate, live_loss
from benchmarks.online.measure import Metrics
from shards import TeacherSpec
from shards.format.schema import Role
from student.data.order import GlobalBatchSampler


class OnlineTrainer(Trainer):
    """Distils `model` from live models, in the usual way without a cache.

    rows     tokenised responses
    order    for each step, the rows of its batch; one micro-batch a step, on one process
    models   by role, on the student's device, not trained
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        *,
        rows: Sequence[TokenRow],
        order: Sequence[Sequence[int]],
        models: Mapping[Role, Any],
        spec: TeacherSpec,
        vocabulary_size: int,
        **kwargs: Any,
    ) -> None:
        assert args.gradient_accumulation_steps == args.world_size == 1, "Trainer would average averages"
        super().__init__(model, args, train_dataset=rows, **kwargs)
        self.order = order
        self.models = models
        self.spec = spec
        self.vocabulary_size = vocabulary_size

    def get_train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_dataset, batch_sampler=self.order, collate_fn=collate)

    def compute_loss(
        self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool = False, **kwargs: Any
    ) -> torch.Tensor:
        return live_loss(model, self.models, inputs, self.spec, self.vocabulary_size)


def batch_order(sampler: GlobalBatchSampler, steps: int) -> list[list[int]]:
    """The rows of the first `steps` batches, epoch after epoch, without those that only fill a batch."""
    order: list[list[int]] = []
    for epoch in range(-(-steps // sampler.num_global_batches)):
        sampler.set_epoch(epoch)
        order += [[item.row for item in items if item.counts] for items in sampler]
    return order[:steps]


class Recorder(TrainerCallback):
    """Measures the student before the first step and after every `every`-th; `seconds` is the time for that."""

    def __init__(self, measured: Callable[[Any], Metrics], every: int) -> None:
        self.measured = measured
        self.every = every
        self.curve: dict[int, Metrics] = {}
        self.seconds = 0.0

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        self._add(0, model)

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        if state.global_step % self.every == 0:
            self._add(state.global_step, model)

    def _add(self, step: int, model: Any) -> None:
        started = time.perf_counter()
        self.curve[step] = self.measured(model)
        self.seconds += time.perf_counter() - started
