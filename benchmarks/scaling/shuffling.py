"""How good a shuffle window is: compared with a permutation, and with blocks of shards that are shuffled one by one."""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.scaling.options import ScalingOptions
from student.data.order import Window, shuffled


def blocks(ends: np.ndarray, width: int, seed: int) -> np.ndarray:
    """The other usual way: shards are shuffled, cut into groups of `width`, and rows are shuffled in each group."""
    generator = np.random.default_rng(seed)
    starts, order = np.append(0, ends[:-1]), generator.permutation(len(ends))
    groups = [order[i : i + width] for i in range(0, len(order), width)]
    rows = [np.concatenate([np.arange(starts[s], ends[s]) for s in group]) for group in groups]
    return np.concatenate([generator.permutation(some) for some in rows])


def quality(order: np.ndarray, ends: np.ndarray, batch: int) -> dict[str, float]:
    """Of one epoch.

    spread      standard deviation of the places of a shard's rows, as a share of the epoch, mean over shards; a
                permutation has 0.289. edge_spread: of the two shards at the ends.
    distinct    shards in a global batch, mean
    correlation of the numbers of rows that neighbouring batches have of each shard, less that shard's mean; 0: none
    at_once     shards that are begun and not finished, at most
    arriving    shards that begin in one global batch, at most, after a tenth of the epoch
    """
    shards, batches = len(ends), len(order) // batch
    of = np.searchsorted(ends, order, side="right")
    counts = np.bincount(of, minlength=shards)
    place = np.arange(len(order))
    mean = np.bincount(of, place, shards) / counts
    spread = np.sqrt(np.bincount(of, (place - mean[of]) ** 2, shards) / counts) / len(order)
    number = place // batch
    first, last = np.full(shards, batches), np.full(shards, -1)
    np.minimum.at(first, of, number)
    np.maximum.at(last, of, number)
    change = np.bincount(first, minlength=batches + 3) - np.bincount(last + 1, minlength=batches + 3)
    table = np.zeros((batches, shards), np.float32)
    np.add.at(table, (number[: batches * batch], of[: batches * batch]), 1)
    rest = table - table.mean(axis=0)
    size = np.sqrt((rest**2).sum(axis=1))
    return {
        "spread": float(spread.mean()),
        "edge_spread": float(spread[np.argsort(mean)[[0, -1]]].mean()),
        "distinct": float((table > 0).sum(axis=1).mean()),
        "correlation": float(((rest[1:] * rest[:-1]).sum(axis=1) / (size[1:] * size[:-1])).mean()),
        "at_once": float(change.cumsum().max()),
        "arriving": float(np.bincount(first, minlength=batches + 1)[batches // 10 :].max()),
    }


def measured(options: ScalingOptions) -> list[dict[str, Any]]:
    """A line for every number of shards, window and way."""
    found = []
    for shards in options.shuffled_shards:
        ends = np.arange(1, shards + 1) * options.shard_rows
        for width in [*(w for w in options.windows if w < shards), shards]:
            for way, order in _ways(ends, width, options.seed).items():
                numbers = quality(order(), ends, options.global_batch_size)
                found.append({"shards": shards, "window": width, "way": way, **numbers})
    return found


def _ways(ends: np.ndarray, width: int, seed: int) -> dict[str, Callable[[], np.ndarray]]:
    window = Window(width=width, ends=ends)
    ways = {"window": lambda: shuffled(int(ends[-1]), seed=seed, epoch=0, window=window)}
    return ways if window.whole else ways | {"blocks": lambda: blocks(ends, width, seed)}
