"""CachedResponses: the responses of one or more caches as a data set for torch."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch.utils.data import Dataset

from shards import ShardCache, TeacherSpec
from shards.errors import CacheConflict, DataError, OptionError
from shards.format.encoding.selection import Selection
from shards.format.index import RowIndex
from shards.format.manifest import refuse_difference
from shards.format.nodes import StrengthNodes
from shards.format.scores import Scores, Tokens, concatenate
from shards.places.room import Room
from shards.spread import spread, spread_in_few
from student.data.order import BatchItem
from student.data.table import ShardTable


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Some rows of the data set: the tokens of each, whether it counts, and the scores of all, concatenated.

    rows   their numbers in the data set, if they are of one
    """

    tokens: Sequence[Tokens]
    counts: Sequence[bool]
    scores: Scores
    rows: Sequence[int] = ()


class CachedResponses(Dataset):
    """The chosen, the rejected or all responses of one or more caches.

    Raises CacheConflict if the caches come from different models, DataError if no response is left.
    """

    def __init__(
        self,
        folders: Sequence[str | Path],
        *,
        train_on: Literal["chosen", "rejected", "both"] = "chosen",
        room: Room | None = None,
    ) -> None:
        self.caches = [ShardCache(folder, room) for folder in folders]
        for cache in self.caches[1:]:
            refuse_difference(kind_of(self.caches[0]), kind_of(cache), f"{cache.name}: is of another kind")
        if len({cache.plan.sha256 for cache in self.caches}) < len(self.caches):
            raise CacheConflict(f"{', '.join(map(str, folders))}: expected different caches, got the same build twice")
        # number of each cache's first row: rows are numbered over all caches
        self._firsts = np.cumsum([0, *(len(cache) for cache in self.caches)])
        wanted = [_wanted(cache.index, train_on) for cache in self.caches]
        self._rows = _joined(wanted, self._firsts)
        self.shards = ShardTable.of(self.caches, wanted)
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
        """The same responses, but reading only what the teacher of `spec` needs.

        Raises TeacherUnavailable if a cache cannot give that teacher.
        """
        for cache in self.caches:
            cache.check(spec)
        return self._reading(needed_by(spec, self.caches[0]))

    def like(self, other: Any) -> "CachedResponses":
        """The responses of `other`, read for the same teacher as these.

        Raises OptionError for another type, CacheConflict if its caches have other models or nodes.
        """
        if not isinstance(other, CachedResponses):
            raise OptionError(f"eval_dataset: expected CachedResponses, got {type(other).__name__}")
        kinds = (kind_of(self.caches[0]), kind_of(other.caches[0]))
        refuse_difference(*kinds, f"{other.caches[0].name}: is of another kind than the training cache")
        return other._reading(self._selection)

    def scores(self, rows: Sequence[int]) -> Scores:
        """The scores of these responses, concatenated; rows count over all caches, as in `self[row]`."""
        return self.__getitems__([BatchItem(row, True) for row in rows]).scores

    def some(self, limit: int) -> Sequence[Tokens]:
        """The tokens of at most `limit` responses, spread over all."""
        return self.__getitems__([BatchItem(row, True) for row in self.sample(limit)]).tokens

    @property
    def is_remote(self) -> bool:
        """Whether a cache lies in a store."""
        return any(cache.mirror is not None for cache in self.caches)

    def sample(self, limit: int) -> list[int]:
        """`limit` rows or fewer, evenly spread; of few shards if a cache lies in a store."""
        return spread_in_few(self.shards.ends, limit) if self.is_remote else spread(len(self), limit)

    def _reading(self, selection: Selection) -> "CachedResponses":
        view = copy.copy(self)
        view._selection = selection
        return view

    def __getitem__(self, item: "BatchItem | int") -> MicroBatch:
        return self.__getitems__([item if isinstance(item, BatchItem) else BatchItem(int(item), True)])

    def __getitems__(self, items: Sequence[BatchItem]) -> MicroBatch:
        """The responses of a micro-batch."""
        caches, rows = self.places([item.row for item in items])
        if (caches == caches[0]).all():
            tokens, scores = self._read(int(caches[0]), rows)
        else:
            tokens, scores = self._read_several(caches, rows)
        counts, numbers = [item.counts for item in items], [item.row for item in items]
        return MicroBatch(tokens=tokens, counts=counts, scores=scores, rows=numbers)

    def places(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Where rows of the data set are: the number of the cache of each, and its row there."""
        found = self._rows[rows]
        caches = np.searchsorted(self._firsts, found, side="right") - 1
        return caches, found - self._firsts[caches]

    def _read(self, number: int, rows: np.ndarray) -> tuple[list[Tokens], Scores]:
        return self.caches[number].read_joined(rows.tolist(), self._selection)

    def _read_several(self, caches: np.ndarray, rows: np.ndarray) -> tuple[list[Tokens], Scores]:
        """Rows of several caches: read cache by cache, then put into the requested order."""
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
    """The rows of a cache to train on."""
    if train_on == "both":
        return np.arange(len(index.chosen), dtype=np.int32)
    return np.flatnonzero(index.chosen == (train_on == "chosen")).astype(np.int32)


def _joined(wanted: Sequence[np.ndarray], firsts: np.ndarray) -> np.ndarray:
    """The wanted rows of all caches, numbered over all; in four bytes each as long as that is enough."""
    if len(wanted) == 1:
        return wanted[0]
    kind = np.int32 if firsts[-1] < 2**31 else np.int64
    return np.concatenate([rows + kind(first) for rows, first in zip(wanted, firsts, strict=False)])


def needed_by(spec: TeacherSpec, cache: ShardCache) -> Selection:
    """The values that a student of the teacher of `spec` needs: no actual next tokens, no other pairs.

    That is: the teacher's roles, the reference and dpo, which are compared with the student in the log, and the reward.
    """
    return Selection(
        roles=cache.plan.roles,
        tails=("dpo", "reference"),
        distances=(spec.negative,),
        pairs=(spec.pair,),
        next_tokens=False,
        names=False,
    )


def kind_of(cache: ShardCache) -> dict[str, Any]:
    """What caches must have in common to be used together: models, tokenizer, roles, pairs and nodes."""
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
