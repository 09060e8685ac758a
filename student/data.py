"""Cached responses as a map-style data set, and the order in which they are read."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from torch.utils.data import Dataset, Sampler

from shards import ShardCache, TeacherSpec
from shards.errors import CacheConflict, DataError, OptionError
from shards.index import RowIndex
from shards.manifest import refuse_difference
from shards.nodes import StrengthNodes
from shards.scores import Scores, Tokens, concatenate
from shards.selection import Selection


class BatchItem(NamedTuple):
    """A row of the data set; one that does not count fills up the last batch and weighs nothing."""

    row: int
    counts: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Some rows of the data set: the tokens of each, whether it counts, and the scores of all, one after the other."""

    tokens: Sequence[Tokens]
    counts: Sequence[bool]
    scores: Scores


class CachedResponses(Dataset):
    """The chosen, the rejected or all responses of one or more caches.

    Raises CacheConflict where the caches come from different models, DataError where no response is left.
    """

    def __init__(
        self, folders: Sequence[str | Path], *, train_on: Literal["chosen", "rejected", "both"] = "chosen"
    ) -> None:
        self.caches = [ShardCache(folder) for folder in folders]
        for cache in self.caches[1:]:
            refuse_difference(kind_of(self.caches[0]), kind_of(cache), f"{cache.folder}: is of another kind")
        if len({cache.plan.sha256 for cache in self.caches}) < len(self.caches):
            raise CacheConflict(f"{', '.join(map(str, folders))}: expected different caches, got the same build twice")
        # numbers of a cache's first row: rows count over all caches, one number a row
        self._firsts = np.cumsum([0, *(len(cache) for cache in self.caches)])
        wanted = [_wanted(cache.index, train_on) for cache in self.caches]
        self._rows = np.concatenate([rows + first for rows, first in zip(wanted, self._firsts, strict=False)])
        self.lengths = np.concatenate(
            [cache.index.num_tokens[rows] for cache, rows in zip(self.caches, wanted, strict=True)]
        )
        self.train_on = train_on
        self._selection = replace(Selection.everything(self.caches[0].plan), names=False)
        if not len(self):
            raise DataError(f"{', '.join(str(f) for f in folders)}: expected {train_on} responses, found none")

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nodes(self) -> StrengthNodes:
        return self.caches[0].plan.nodes

    def for_teacher(self, spec: TeacherSpec) -> "CachedResponses":
        """The same responses, of which only what the teacher of `spec` needs is read.

        Raises TeacherUnavailable where a cache cannot give that teacher.
        """
        for cache in self.caches:
            cache.check(spec)
        return self._reading(needed_by(spec, self.caches[0]))

    def like(self, other: Any) -> "CachedResponses":
        """The responses of `other`, read for the teacher that these are read for.

        Raises OptionError for another type, CacheConflict where its caches come from other models or have other nodes.
        """
        if not isinstance(other, CachedResponses):
            raise OptionError(f"eval_dataset: expected CachedResponses, got {type(other).__name__}")
        kinds = (kind_of(self.caches[0]), kind_of(other.caches[0]))
        refuse_difference(*kinds, f"{other.caches[0].folder}: is of another kind than the training cache")
        return other._reading(self._selection)

    def scores(self, rows: Sequence[int]) -> Scores:
        """The scores of these responses, one after the other; rows count over all caches, as in `self[row]`."""
        return self.__getitems__([BatchItem(row, True) for row in rows]).scores

    def _reading(self, selection: Selection) -> "CachedResponses":
        view = copy.copy(self)
        view._selection = selection
        return view

    def __getitem__(self, item: "BatchItem | int") -> MicroBatch:
        return self.__getitems__([item if isinstance(item, BatchItem) else BatchItem(int(item), True)])

    def __getitems__(self, items: Sequence[BatchItem]) -> MicroBatch:
        """The responses of a micro-batch."""
        rows = self._rows[[item.row for item in items]]
        caches = np.searchsorted(self._firsts, rows, side="right") - 1
        rows -= self._firsts[caches]
        if (caches == caches[0]).all():
            tokens, scores = self._read(int(caches[0]), rows)
        else:
            tokens, scores = self._read_several(caches, rows)
        return MicroBatch(tokens=tokens, counts=[item.counts for item in items], scores=scores)

    def _read(self, number: int, rows: np.ndarray) -> tuple[list[Tokens], Scores]:
        return self.caches[number].read_joined(rows.tolist(), self._selection)

    def _read_several(self, caches: np.ndarray, rows: np.ndarray) -> tuple[list[Tokens], Scores]:
        """Rows of several caches: those of a cache together, then all in the order asked for."""
        found: dict[int, tuple[Tokens, Scores]] = {}
        for number in np.unique(caches):
            items = np.flatnonzero(caches == number)
            tokens, scores = self._read(int(number), rows[items])
            ends = np.cumsum([0, *(row.loss_mask.sum() for row in tokens)]).tolist()
            parts = [scores.slice(start, stop) for start, stop in pairwise(ends)]
            found |= zip(items.tolist(), zip(tokens, parts, strict=True), strict=True)
        ordered = [found[item] for item in range(len(rows))]
        return [tokens for tokens, _ in ordered], concatenate([part for _, part in ordered])


def _wanted(index: RowIndex, train_on: str) -> np.ndarray:
    """The rows of a cache that are trained on."""
    if train_on == "both":
        return np.arange(len(index.chosen))
    return np.flatnonzero(index.chosen == (train_on == "chosen"))


def needed_by(spec: TeacherSpec, cache: ShardCache) -> Selection:
    """What a student of the teacher of `spec` learns from: no actual next tokens, no other pairs.

    The teacher's roles, the reference and dpo, which the log compares the student with, and all that a reward needs.
    """
    return Selection(
        roles=cache.plan.roles,
        tails=("dpo", "reference"),
        distances=(spec.negative,),
        pairs=(spec.pair,),
        next_tokens=False,
        names=False,
    )


class GlobalBatchSampler(Sampler[list[BatchItem]]):
    """Micro-batches of one rank. The global batches are a pure function of (seed, epoch, global batch size).

    Rows are shuffled and cut into global batches; inside a global batch they are sorted by length, the longest first,
    and dealt out so that the micro-batches that run at the same time on all ranks are as alike, and as little padded,
    as can be. The last micro-batches are filled up with items that do not count (the shortest row), so that every rank
    has as many and no row counts twice.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        seed: int,
        micro_batch_size: int,
        accumulation_steps: int,
        world_size: int,
        rank: int,
        shuffle: bool = True,
    ) -> None:
        self.lengths = lengths
        self.seed = seed
        self.micro_batch_size = micro_batch_size
        self.accumulation_steps = accumulation_steps
        self.world_size = world_size
        self.rank = rank
        self.shuffle = shuffle
        self.epoch = 0

    @property
    def global_batch_size(self) -> int:
        return self.micro_batch_size * self.accumulation_steps * self.world_size

    @property
    def num_global_batches(self) -> int:
        return -(-len(self.lengths) // self.global_batch_size)

    def __len__(self) -> int:
        """Micro-batches of this rank in an epoch; the last step may have fewer than the others."""
        whole, rest = divmod(len(self.lengths), self.global_batch_size)
        return whole * self.accumulation_steps + -(-rest // (self.micro_batch_size * self.world_size))

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def global_batches(self) -> Iterator[list[BatchItem]]:
        """The batches of the epoch, the same on every rank."""
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.lengths))
        else:
            order = np.argsort(-self.lengths, kind="stable")
        filler = BatchItem(int(np.argmin(self.lengths)), False)
        for start in range(0, len(order), self.global_batch_size):
            rows = order[start : start + self.global_batch_size]
            rows = rows[np.argsort(-self.lengths[rows], kind="stable")]
            items = [BatchItem(int(row), True) for row in rows]
            yield items + [filler] * (-len(items) % (self.micro_batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[BatchItem]]:
        at_once = self.micro_batch_size * self.world_size
        for items in self.global_batches():
            for start in range(0, len(items), at_once):
                yield items[start + self.rank : start + at_once : self.world_size]


def kind_of(cache: ShardCache) -> dict[str, Any]:
    """What caches that are used together must agree on: models, tokenizer, roles, pairs and nodes."""
    plan = cache.plan
    return {
        "models": plan.identity.get("models"),
        "tokenizer": plan.identity.get("tokenizer"),
        "roles": plan.roles,
        "pairs": list(map(str, plan.pairs)),
        "gain_nodes": plan.nodes.gains,
        "strength_nodes": plan.nodes.strengths,
        "vocabulary_size": plan.vocabulary_size,
    }
