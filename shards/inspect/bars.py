"""Bars of a histogram for a chart, over its occupied bins. Pure."""

from itertools import pairwise

import numpy as np

from shards.format.statistics import Histogram

MARGIN_BARS = 30


def bars(histogram: Histogram, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """(counts in at most `limit` bars, edges of all bars, one more), over all occupied bins."""
    occupied = np.flatnonzero(histogram.counts)
    first, last = int(occupied[0]), int(occupied[-1]) + 1
    edges = np.unique(np.linspace(first, last, min(limit, last - first) + 1).round().astype(int))
    counts = np.array([histogram.counts[start:stop].sum() for start, stop in pairwise(edges)])
    return counts, np.array([histogram.edge(int(edge)) for edge in edges])


def signed_bars(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of plain numbers, in about MARGIN_BARS equal bars, one of which begins at 0."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    width = (high - low) / MARGIN_BARS or 1.0
    steps = np.arange(np.floor(low / width), np.floor(high / width) + 2)
    counts, edges = np.histogram(values, steps * width)
    return counts, edges
