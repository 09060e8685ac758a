"""Bars of a histogram for a chart, over its occupied bins. Pure."""

from itertools import pairwise

import numpy as np

from shards.format.statistics import Histogram


def bars(histogram: Histogram, limit: int) -> tuple[np.ndarray, float, float]:
    """(counts in at most `limit` bars, start of the first, end of the last), over all occupied bins."""
    occupied = np.flatnonzero(histogram.counts)
    first, last = int(occupied[0]), int(occupied[-1]) + 1
    edges = np.unique(np.linspace(first, last, min(limit, last - first) + 1).round().astype(int))
    counts = np.array([histogram.counts[start:stop].sum() for start, stop in pairwise(edges)])
    return counts, histogram.edge(first), histogram.edge(last)
