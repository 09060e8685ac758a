"""The index of a cache, from the tokenised rows that it will hold."""

from collections.abc import Sequence

import numpy as np

from precompute.tokenize import TokenizedResponse
from shards.index import RowIndex


def row_index(rows: Sequence[TokenizedResponse]) -> RowIndex:
    """Pair, preference and lengths of every row, in one pass."""
    pair_id, chosen = np.empty(len(rows), np.int64), np.empty(len(rows), bool)
    num_tokens, num_positions = np.empty(len(rows), np.int32), np.empty(len(rows), np.int32)
    for i, row in enumerate(rows):
        pair_id[i], chosen[i] = row.pair_id, row.chosen
        num_tokens[i], num_positions[i] = len(row.input_ids), row.loss_mask.sum()
    return RowIndex(pair_id=pair_id, chosen=chosen, num_tokens=num_tokens, num_positions=num_positions)
