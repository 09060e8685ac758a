"""How many tokens a forward pass may have: by default on a CPU, and measured from the memory of a GPU."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

import torch

from shards.errors import OptionError, first_line

AUTO = "auto"
CPU_BATCH_TOKENS = 8192
MOST_BATCH_TOKENS = 16_384
"""Of a batch that auto finds. Larger products are no faster, and sorted rows get more padding (docs/performance.md)."""
STEP = 1024
"""auto finds multiples of this, so that a little more or less free memory gives the same number."""
PROBE_TOKENS = 4096
"""Padded tokens of the larger of the two batches that are measured, if the longest row has fewer."""
SPARE = 0.1
"""Share of the memory that stays free: for fragments, and for batches whose responses are longer."""

Row = TypeVar("Row")


class Memory(Protocol):
    """The memory of a device."""

    def available(self) -> int:
        """Bytes that this process could still use."""

    def peak_of(self, work: Callable[[], object]) -> int:
        """The most bytes that some work takes beyond what is in use before it."""


class CudaMemory:
    def __init__(self, device: torch.device) -> None:
        self._device = device

    def available(self) -> int:
        free, _ = torch.cuda.mem_get_info(self._device)
        return free + torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)

    def peak_of(self, work: Callable[[], object]) -> int:
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        work()
        return torch.cuda.max_memory_allocated(self._device) - before


def chunk_positions_for(device: torch.device) -> int:
    """Positions with logits in memory at a time: few fit into a CPU's cache, and many keep a GPU at work."""
    return 128 if device.type == "cpu" else 512


def batch_tokens_for(device: torch.device) -> str:
    """What auto is before the models are loaded: still auto on a CUDA device, where it is measured."""
    return AUTO if device.type == "cuda" else str(CPU_BATCH_TOKENS)


def fitting_tokens(
    longest: Sequence[Row], tokens: int, score: Callable[[Sequence[Row]], object], memory: Memory
) -> int:
    """The padded tokens of the largest batch that fits, a multiple of STEP from STEP to MOST_BATCH_TOKENS.

    longest: the longest rows, longest first; tokens: of the first; score: all of a build's work on a batch. A straight
    line through the peaks of a batch of one row and of one of several says what a token takes. Raises OptionError if
    not even the longest row fits.
    """
    few, more = longest[:1], longest[: max(2, PROBE_TOKENS // tokens)]
    available = memory.available()
    try:
        score(few)  # the first pass takes memory that later ones use again
        first, second = (memory.peak_of(partial(score, batch)) for batch in (few, more))
    except torch.OutOfMemoryError as exc:
        raise OptionError(
            f"batch_tokens: expected memory for {len(more)} rows of up to {tokens:,} tokens, got {first_line(exc)}; "
            "give --batch_tokens 1 (rows one by one), or --models_in_memory one"
        ) from exc
    a_token = max(1.0, (second - first) / (tokens * max(1, len(more) - 1)))
    fits = tokens + ((1 - SPARE) * available - first) / a_token
    return int(min(MOST_BATCH_TOKENS, max(STEP, fits // STEP * STEP)))
