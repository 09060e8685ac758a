"""Two ranks of a command with the environment that torchrun gives them, out of a process that has all libraries loaded.

A real launch by torchrun, which loads the libraries three times, is in test_build.py.
"""

import contextlib
import multiprocessing
import os
import runpy
import socket
import sys
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["student.trainer", "student.reference", "student.ranks"])


def run_ranks(what, arguments, folder):
    """Run a module, or a script, on two ranks; what they printed. Raises AssertionError unless both end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [Path(folder) / f"rank-{rank}.log" for rank in range(2)]
    ranks = [CONTEXT.Process(target=_rank, args=(rank, port, what, arguments, logs[rank])) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(200)
    printed = [log.read_text() for log in logs]
    assert [rank.exitcode for rank in ranks] == [0, 0], "\n".join(text[-3000:] for text in printed)
    return printed


def _rank(rank, port, what, arguments, log):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    sys.argv = [str(what), *arguments]
    with log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        if isinstance(what, Path):
            runpy.run_path(str(what), run_name="__main__")
        else:
            runpy.run_module(what, run_name="__main__", alter_sys=True)
