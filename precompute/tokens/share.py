"""Shares the tokenised data of the first process with all processes; only the first one tokenises.

The tokens are in a file without a name (`token_store`). Processes of the same machine open it through the first one's
entry in /proc; others receive the bytes and keep them in such a file of their own. No file is left behind.
"""

import functools
from collections.abc import Callable
from dataclasses import replace

from precompute.processes import Processes
from precompute.tokens.corpus import Corpus
from precompute.tokens.token_store import RowTable, TokenStore
from shards.errors import DataError

PIECE_BYTES = 1 << 26


def load_on_first(load: Callable[[], Corpus], processes: Processes, *, rows_sha256: str) -> Corpus:
    """The corpus that `load` gives the first process, on every process; only the first gets `sampled_pairs`.

    Raises DataError if its rows differ from those that were hashed before.
    """

    def loaded() -> Corpus | None:
        corpus = load() if processes.is_first else None
        if corpus is not None and corpus.data_sha256 != rows_sha256:
            raise DataError("data: expected the rows of a minute ago, got others; is it still being written?")
        return corpus

    corpus = processes.together(loaded)
    return _everywhere(corpus, processes) if processes.world_size > 1 or corpus is None else corpus


def _everywhere(corpus: Corpus | None, processes: Processes) -> Corpus:
    """corpus: None except on the first process."""
    mine = corpus.responses if corpus is not None else None
    assert mine is None or isinstance(mine, TokenStore)
    table: RowTable = processes.share(mine.table if mine is not None else None)
    rest: Corpus = processes.share(corpus and replace(corpus, responses=(), sampled_pairs=()))
    store = mine if mine is not None else TokenStore.opened(table)
    if not all(processes.gather(store is not None)):
        received = _send(mine, table, processes)
        store = store if store is not None else received
    assert store is not None
    return corpus or replace(rest, responses=store)


def _send(mine: TokenStore | None, table: RowTable, processes: Processes) -> TokenStore:
    """Send the first process's bytes, piece by piece, into a file of each other process."""
    received = processes.together(lambda: TokenStore(table) if mine is None else mine)

    def keep(piece: bytes) -> None:
        if mine is None:
            received.write_bytes(piece)

    for start in range(0, table.num_bytes, PIECE_BYTES):
        piece: bytes = processes.share(mine.read_bytes(start, PIECE_BYTES) if mine is not None else None)
        processes.together(functools.partial(keep, piece))
    return received
