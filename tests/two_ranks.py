"""Two ranks of a command with the environment that torchrun gives them, out of a process that has all libraries loaded.

Real launches by torchrun, which load the libraries three times, are in test_build.py and test_training.py.
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


def run_ranks(module, arguments, folder):
    """Run a command on two ranks; raises AssertionError with what they printed unless both end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [Path(folder) / f"rank-{rank}.log" for rank in range(2)]
    ranks = [CONTEXT.Process(target=_rank, args=(rank, port, module, arguments, logs[rank])) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(200)
    assert [rank.exitcode for rank in ranks] == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)


def _rank(rank, port, module, arguments, log):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    sys.argv = [module, *arguments]
    with log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
