"""Ranks of a command with the environment that torchrun gives them.

A real launch by torchrun, which loads the libraries three times, is in test_build.py.
"""

import socket
from pathlib import Path

import fresh


def run_ranks(what, arguments, folder, *, count=2, **environment):
    """Run a module, or a script, on some ranks; what they printed. Raises AssertionError unless all end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [Path(folder) / f"rank-{rank}" for rank in range(count)]
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": str(port)} | environment
    ranks = [
        fresh.start(what, arguments, folder, logs[rank], RANK=str(rank), LOCAL_RANK=str(rank), **common)
        for rank in range(count)
    ]
    for rank in ranks:
        rank.join(fresh.SECONDS)
    printed = ["".join(fresh.printed(log)) for log in logs]
    assert [rank.exitcode for rank in ranks] == [0] * count, "\n".join(text[-3000:] for text in printed)
    return printed
