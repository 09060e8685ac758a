"""Commands in processes of their own, out of one that has all libraries loaded: six seconds of imports less for each.

Nothing of the test's own process is in them. That every command starts by `python -m` is seen in test_commands.py,
test_pipeline.py and the tests of the room shards.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["loaded"])
SECONDS = 200


def start(what, arguments, folder, log, **environment):
    """A process that runs a module, or a script, in `folder`; log: stem of the files of its stdout and stderr."""
    arguments = [str(argument) for argument in arguments]
    process = CONTEXT.Process(target=_run, args=(what, arguments, str(folder), str(log), environment))
    process.start()
    return process


def printed(log):
    """stdout and stderr."""
    return tuple(Path(f"{log}.{name}").read_text() for name in ("out", "err"))


def run(module, arguments, folder, log, **environment):
    """Run a command to its end, as subprocess.run does."""
    process = start(module, arguments, folder, log, **environment)
    process.join(SECONDS)
    assert process.exitcode is not None, f"{module} did not end: {printed(log)[1][-3000:]}"
    return subprocess.CompletedProcess([module, *arguments], process.exitcode, *printed(log))


def _run(what, arguments, folder, log, environment):
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    sys.path.insert(0, folder)  # as `python -m` does
    os.environ |= {"OMP_NUM_THREADS": "1"} | environment
    sys.argv = [str(what), *arguments]
    if isinstance(what, Path):
        runpy.run_path(str(what), run_name="__main__")
    else:
        runpy.run_module(what, run_name="__main__", alter_sys=True)
