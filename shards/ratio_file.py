"""Tables of all pairs of a fit on disk, so that memory does not grow with them: some hundred bytes a position.

The file lies where temporary files do (TMPDIR) and has no name, so that nothing is left of it, however the process
ends.

Dimensions: N response positions of a block, Q knots, R responses.
"""

import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from shards.errors import OptionError
from shards.nodes import StrengthNodes
from shards.ratio_table import Block, RatioTable, knots_at
from shards.sample import QUIET_SECONDS

STORED = np.dtype("<f4")
"""What values and derivatives are rounded to: 6e-8 of a term, where the cubic between knots is off by more."""


class RatioFile:
    """Blocks of pairs, written once and read in their order as often as needed. Knots are computed from D_t again."""

    def __init__(self, nodes: StrengthNodes, positions: int) -> None:
        """positions: how many there will be in all. Raises OptionError where the disk has no room for them."""
        self.nodes = nodes
        self._knots = 2 * len(nodes) - 1
        self._blocks = self._passes = 0
        needed, free = positions * self.bytes_per_position, shutil.disk_usage(tempfile.gettempdir()).free
        if needed > free:
            raise OptionError(
                f"TMPDIR: expected {needed / 2**30:.2f} GiB free in {tempfile.gettempdir()} for the fit of a learned "
                f"strength, got {free / 2**30:.2f}"
            )
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as it is read

    @property
    def bytes_per_position(self) -> int:
        """D_t, and value and derivative at every knot."""
        return STORED.itemsize * (1 + 2 * self._knots)

    def __enter__(self) -> "RatioFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, table: RatioTable) -> None:
        """Add a table whose responses are pairs one after the other, the chosen one first."""
        sizes_R = np.bincount(table.response)
        self._file.write(np.array([len(sizes_R), len(table.distance)], dtype="<i8").tobytes())
        self._file.write(sizes_R.astype("<i8").tobytes())
        for values in (table.distance, table.values, table.slopes):
            self._file.write(np.ascontiguousarray(values, dtype=STORED).tobytes())
        self._blocks += 1

    def __iter__(self) -> Iterator[Block]:
        self._file.seek(0)
        self._passes += 1
        bar = {"unit": "block", "desc": f"fitting the strength, pass {self._passes}", "leave": False}
        for _ in tqdm(range(self._blocks), delay=QUIET_SECONDS, **bar):
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
            )
            yield table, np.arange(responses).reshape(-1, 2)

    def _read(self, dtype: Any, count: int) -> np.ndarray:
        dtype = np.dtype(dtype)
        return np.frombuffer(self._file.read(count * dtype.itemsize), dtype)
