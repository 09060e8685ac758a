"""Finds names that occur twice in a cache of any size: 17 bytes a row, and one sort at the end."""

from array import array
from collections.abc import Iterator

import numpy as np

from shards.format.content.rules import RESPONSE_KINDS
from shards.format.scores import Response


class SeenNames:
    """The names of the rows so far. A legal sample_id is pair_id and kind; any other is a fault by itself (rule 9)."""

    def __init__(self) -> None:
        self._rows, self._pair_ids, self._kinds = array("q"), array("q"), array("b")

    def add(self, response: Response, row: int) -> None:
        """Remember a row if its name is legal; row numbers must ascend."""
        pair_id, _, kind = response.sample_id.rpartition("/")
        if pair_id == str(response.pair_id) and kind in RESPONSE_KINDS:
            self._rows.append(row)
            self._pair_ids.append(response.pair_id)
            self._kinds.append(RESPONSE_KINDS.index(kind))

    def repeated(self) -> Iterator[tuple[int, str, int]]:
        """(row, its sample_id, the first row with that name) of every row that repeats a name, ascending."""
        if not self._rows:
            return
        rows, pair_ids, kinds = (np.asarray(column) for column in (self._rows, self._pair_ids, self._kinds))
        order = np.lexsort((kinds, pair_ids))  # stable: rows with equal names stay in order
        same = (np.diff(pair_ids[order]) == 0) & (np.diff(kinds[order]) == 0)
        starts = np.flatnonzero(np.append(True, ~same))
        firsts = np.repeat(order[starts], np.diff(np.append(starts, len(order))))
        again = np.flatnonzero(order != firsts)
        for i in again[np.argsort(order[again])]:
            at = order[i]
            yield int(rows[at]), f"{pair_ids[at]}/{RESPONSE_KINDS[kinds[at]]}", int(rows[firsts[i]])
