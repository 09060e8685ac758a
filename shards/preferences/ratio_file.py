"""The tables of a fit in a temporary file, about a hundred bytes a position, so that memory stays flat.

The file is in the folder for temporary files (TMPDIR) and has no name, so it disappears with the process, even after a
kill.

Dimensions: N response positions of a block, Q knots, R responses.
"""

import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from shards.errors import OptionError
from shards.files import about
from shards.format.nodes import MIN_STRENGTH, StrengthNodes
from shards.preferences.ratio_table import Block, RatioTable, knots_at
from shards.progress import progress

USUAL_PASSES = 10
"""Of a fit, as measured; what a person is told to expect."""
STORED = np.dtype("<f4")
"""Dtype of stored values and derivatives: rounds by 6e-8 of a term; the cubic between knots has a larger error."""


class RatioFile:
    """Blocks of pairs, written once and read in order as often as needed. Knots are recomputed from D_t."""

    def __init__(self, nodes: StrengthNodes, positions: int, min_strength: float = MIN_STRENGTH) -> None:
        """positions: the total to come. Raises OptionError if the disk has no room for them."""
        self.nodes = nodes
        self.min_strength = min_strength
        self._knots = 2 * len(nodes) - 1
        self._blocks = self._passes = 0
        needed, free = positions * self.bytes_per_position, shutil.disk_usage(tempfile.gettempdir()).free
        if needed > free:
            raise OptionError(
                f"TMPDIR: expected {needed / 2**30:.2f} GiB free in {tempfile.gettempdir()} for the fit of a learned "
                f"strength, got {free / 2**30:.2f}"
            )
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - stays open while it is read

    @property
    def bytes_per_position(self) -> int:
        """Bytes for D_t, and for value and derivative at every knot."""
        return STORED.itemsize * (1 + 2 * self._knots)

    def __enter__(self) -> "RatioFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, table: RatioTable) -> None:
        """Add a table of pairs, the chosen response of each before the rejected one."""
        sizes_R = np.bincount(table.response)
        with about(tempfile.gettempdir()):
            self._file.write(np.array([len(sizes_R), len(table.distance)], dtype="<i8").tobytes())
            self._file.write(sizes_R.astype("<i8").tobytes())
            for values in (table.distance, table.values, table.slopes):
                self._file.write(np.ascontiguousarray(values, dtype=STORED).tobytes())
        self._blocks += 1

    def __iter__(self) -> Iterator[Block]:
        with about(tempfile.gettempdir()):
            self._file.seek(0)
        self._passes += 1
        what = f"fitting the strength, pass {self._passes} of about {USUAL_PASSES}"
        for _ in progress(range(self._blocks), what, unit="block", brief=True):
            responses, positions = self._read("<i8", 2).tolist()
            sizes_R = self._read("<i8", responses)
            distance_N = self._read(STORED, positions).astype(np.float64)
            values_NQ, slopes_NQ = (
                self._read(STORED, positions * self._knots).reshape(positions, self._knots) for _ in range(2)
            )
            table = RatioTable(
                knots=knots_at(self.nodes, distance_N),
                values=values_NQ,
                slopes=slopes_NQ,
                distance=distance_N,
                response=np.repeat(np.arange(responses), sizes_R),
                min_strength=self.min_strength,
            )
            yield table, np.arange(responses).reshape(-1, 2)

    def _read(self, dtype: Any, count: int) -> np.ndarray:
        dtype = np.dtype(dtype)
        with about(tempfile.gettempdir()):
            return np.frombuffer(self._file.read(count * dtype.itemsize), dtype)
