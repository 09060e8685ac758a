"""What the runs of a campaign train on: tiny caches of random log-probs, and a tiny student."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fake_cache import make_cache
from tiny import make_llama, with_dropout

from student.data.order import BatchItem, GlobalBatchSampler
from student.data.responses import CachedResponses

VOCABULARY, SEED = 24, 42
GLOBAL_BATCH = 8
EPOCHS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Two caches of one kind, in shards of four rows."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "Ground":
        for number, pairs in enumerate((9, 13)):
            make_cache(folder / f"cache-{number}", vocabulary_size=VOCABULARY, pairs=pairs, seed=number)
        return cls(folder=folder)

    def caches(self, count: int) -> list[str]:
        """One has 18 rows, both have 44: three and six steps an epoch, the last one filled up."""
        return [str(self.folder / f"cache-{number}") for number in range(count)]

    @staticmethod
    def student(*, dropout: bool) -> Any:
        model = make_llama(3, VOCABULARY, hidden_size=8, intermediate_size=16, num_hidden_layers=1, scale=0.1)
        return with_dropout(model) if dropout else model


def key_of(input_ids: Any) -> str:
    """A response, told by its tokens; those of the caches are unlike each other."""
    return ",".join(map(str, [int(i) for i in input_ids]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Step -> the responses of its global batch in order, as keys and as places: from `student.data.order` alone."""

    keys: dict[int, list[str]]
    places: dict[int, list[tuple[int, int]]]

    @classmethod
    def of(cls, caches: list[str], window: int | None) -> "Order":
        data = CachedResponses(caches, train_on="both")
        sampler = GlobalBatchSampler(
            data.lengths, seed=SEED, micro_batch_size=GLOBAL_BATCH, accumulation_steps=1, world_size=1, rank=0,
            window=data.shards.window(window),
        )  # fmt: skip
        keys: dict[int, list[str]] = {}
        places: dict[int, list[tuple[int, int]]] = {}
        for epoch in range(EPOCHS):
            sampler.set_epoch(epoch)
            for batch in sampler.global_batches():
                rows = [item.row for item in batch if item.counts]
                step = len(keys) + 1
                tokens = data.__getitems__([BatchItem(row, True) for row in rows]).tokens
                keys[step] = [key_of(row.input_ids) for row in tokens]
                columns = (column.tolist() for column in data.places(rows))
                places[step] = list(zip(*columns, strict=True))
        return cls(keys=keys, places=places)
