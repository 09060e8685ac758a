"""The data that the first process tokenised, on all processes of a build; only the first one does that work.

The tokens lie in a file without a name (`token_store`). Processes of the same machine open it through the first one's
entry in /proc; any other is sent the bytes, and keeps them in such a file of its own. Nothing is left behind.
"""

from collections.abc import Callable
from dataclasses import replace

from precompute.corpus import Corpus
from precompute.processes import Processes
from precompute.token_store import Index, TokenStore

PIECE_BYTES = 1 << 26


def load_on_first(load: Callable[[], Corpus], processes: Processes) -> Corpus:
    """The corpus that `load` gives the first process, on every process; `sampled_pairs` stay with the first."""
    corpus = processes.together(lambda: load() if processes.is_first else None)
    if processes.world_size == 1:
        assert corpus is not None
        return corpus
    mine = corpus.responses if corpus else None
    assert mine is None or isinstance(mine, TokenStore)
    index: Index = processes.share(mine and mine.index)
    rest: Corpus = processes.share(corpus and replace(corpus, responses=(), sampled_pairs=()))
    store = mine or TokenStore.opened(index)
    if not all(processes.gather(store is not None)):
        received = _send(mine, index, processes)
        store = store or received
    return corpus or replace(rest, responses=store)


def _send(mine: TokenStore | None, index: Index, processes: Processes) -> TokenStore:
    """The first one's bytes, piece by piece, into a file of each process."""
    received = mine or TokenStore(index)
    for start in range(0, index.num_bytes, PIECE_BYTES):
        piece = processes.share(mine and mine.read_bytes(start, PIECE_BYTES))
        processes.together(lambda piece=piece: None if mine else received.write_bytes(piece))
    return received
