"""The loaders of a training and of its evaluation: their order, what they fetch, and their workers."""

import copy
import os
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader

from shards.errors import OptionError
from student.data.fetching import FetchingSampler, Node, mirrors_of
from student.data.order import GlobalBatchSampler
from student.data.responses import CachedResponses

PREFETCH = 2
"""torch's prefetch_factor where none is given."""


class Loading:
    """Makes the loaders of a run. Where caches are in a store, training and evaluation share the limit of the disk.

    args   the run's DistillArguments
    """

    def __init__(self, args: Any, training: CachedResponses, evaluation: CachedResponses | None) -> None:
        self.args = args
        self.training, self.evaluation = training, evaluation
        mirrors = [m for data in (training, evaluation) if data is not None for m in mirrors_of(data) if m is not None]
        limit = mirrors[0].limit if mirrors else None
        self._other_files = sum(mirror.needed(0) for mirror in mirrors)
        self._limit = None if limit is None else limit - self._other_files
        self._evaluated = 0  # bytes that an evaluation during the training needs

    def sampler(self, data: CachedResponses, micro_batch_size: int, *, shuffle: bool) -> GlobalBatchSampler:
        """The order of a training (shuffle), or of an evaluation, which has no accumulation."""
        args = self.args
        return GlobalBatchSampler(
            data.lengths,
            seed=args.seed if args.data_seed is None else args.data_seed,
            micro_batch_size=micro_batch_size,
            accumulation_steps=args.gradient_accumulation_steps if shuffle else 1,
            world_size=args.world_size,
            rank=args.process_index,
            shuffle=shuffle,
            window=data.shards.window(args.shuffle_window),
        )

    def loader(self, data: CachedResponses, sampler: GlobalBatchSampler, collate: Callable[..., Any]) -> DataLoader:
        """The loader of the training, if `sampler` shuffles, else of an evaluation."""
        args = self.args
        fetches = any(mirrors_of(data))
        return DataLoader(
            data,
            batch_sampler=self._fetching(data, sampler) if fetches else sampler,
            collate_fn=collate,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            # its own, because torch takes the workers' seed from it: of the common one dropout would depend on the
            # loaders that were made, as for evaluations
            generator=torch.Generator(),
        )

    def require_limit(self, sampler: GlobalBatchSampler, epochs: range) -> None:
        """Raise OptionError, with the number that is needed, if the limit has no room for what the order needs at once.

        sampler, epochs: of the training. An evaluation during the training needs its own shards beside.
        """
        if self._limit is None:
            return
        trained, evaluated = self._fetching(self.training, copy.copy(sampler)), 0
        if self.evaluation is not None:
            order = self.sampler(self.evaluation, self.args.eval_batch_size, shuffle=False)
            evaluated = self._fetching(self.evaluation, order).bytes_at_once()
        self._evaluated = evaluated if self.args.eval_strategy != "no" else 0
        needed = evaluated
        for epoch in epochs:
            trained.set_epoch(epoch)
            needed = max(needed, trained.bytes_at_once() + self._evaluated)
        if needed > self._limit:
            window = "give" if self.args.shuffle_window is None else "lower"
            raise OptionError(
                f"cache_limit: expected {needed + self._other_files:,} bytes or more, which the order needs at once, "
                f"got {self._limit + self._other_files:,}; raise it or {window} --shuffle_window"
            )

    def _fetching(self, data: CachedResponses, sampler: GlobalBatchSampler) -> FetchingSampler:
        args, limit = self.args, self._limit
        if limit is not None and sampler.shuffle:
            limit -= self._evaluated
        local = int(os.environ.get("LOCAL_WORLD_SIZE", args.world_size))
        first = args.process_index - args.local_process_index
        node = Node(ranks=range(first, first + local), is_first=args.local_process_index == 0)
        prefetch = PREFETCH if args.dataloader_prefetch_factor is None else args.dataloader_prefetch_factor
        in_flight = max(1, args.dataloader_num_workers * prefetch)
        return FetchingSampler(sampler, data, node, in_flight=in_flight, limit=limit)
