"""python -m shards.pipeline FILE: the commands that a YAML file lists, one after the other.

Every step runs the real command in its own process. A step that was done before with the same flags and inputs is
skipped. After a failure or a kill, the same command continues.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shards.cli.command import OneLineErrors, run_command
from shards.cli.flags.quiet_flag import add_quiet_flag
from shards.cli.space import require_writable
from shards.errors import OptionError
from shards.locks.lock import exclusive_file
from shards.pipeline.file import read_pipeline
from shards.pipeline.record import Record
from shards.pipeline.step import Step
from shards.progress import commanded
from shards.say import result, say

LINE_WIDTH = 110


def run_pipeline(file: Path, *, quiet: bool = False) -> int:
    """Run the steps that are not done, with --quiet if asked for. Returns the exit code of the step that failed, or 0.

    Raises AlignDistilError.
    """
    pipeline = read_pipeline(file)
    require_writable(pipeline.out)
    # beside the record: the file itself may lie where nothing can be written
    with exclusive_file(pipeline.out / file.name, name=str(file)):
        record = Record(pipeline.out)
        for step in pipeline.steps:  # before hours of work on the first
            record.require_same_command(step)
        for step in pipeline.steps:
            if record.is_done(step):
                say(f"{step.name}: already done with the same flags from the same inputs, skipped")
                continue
            inputs, started = record.inputs(step), time.perf_counter()
            say(f"{step.name}:\n{command_text(step)}")
            if code := run_to_end(step, quiet=quiet):
                print(
                    f"{file}: step {step.name} ended with exit code {code}; the same command goes on from here",
                    file=sys.stderr,
                )
                return code
            record.add(step, inputs)
            say(f"{step.name}: done after {time.perf_counter() - started:,.0f} s")
    return 0


def show_pipeline(file: Path) -> int:
    """Print the commands, and which are done. Steps after the first one to run count as not done. Returns 0."""
    pipeline = read_pipeline(file)
    record, pending = Record(pipeline.out), False
    for step in pipeline.steps:
        record.require_same_command(step)
        done = not pending and record.is_done(step)
        pending = not done
        result(f"{step.name}:{' already done' if done else ''}\n{command_text(step)}")
    return 0


def run_to_end(step: Step, *, quiet: bool = False) -> int:
    """Run a step. Returns its exit code as a shell gives it; never 0 after Ctrl-C or SIGTERM.

    Ctrl-C reaches the step directly, like every process of a terminal; SIGTERM is passed on.
    """
    # torchrun and accelerate of this Python, also where it was called by its path
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    process: subprocess.Popen | None = None
    asked: list[int] = []

    def stop(number: int, _: Any) -> None:
        asked.append(number)
        if number == signal.SIGTERM and process is not None:
            process.terminate()

    earlier = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        process = subprocess.Popen(step.words(quiet=quiet), env=os.environ | {"PATH": path})
        code = process.wait()
    except OSError as exc:
        raise OptionError(f"step {step.name}: expected a launcher that runs, got {step.words()[0]} ({exc})") from exc
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
    if asked and code == 0:
        return 128 + asked[0]
    return code if code >= 0 else 128 - code


def command_text(step: Step) -> str:
    """The command as a person would type it, in lines of whole flags."""
    lines = ["$ " + shlex.join([*(step.launch or ("python",)), "-m", step.module])]
    for words in map(shlex.join, step.flag_words()):
        if len(lines[-1]) + len(words) < LINE_WIDTH:
            lines[-1] += f" {words}"
        else:
            lines.append(f"      {words}")
    return " \\\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = OneLineErrors(
        prog="python -m shards.pipeline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="a YAML file, as docs/recipes.md describes it")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="print the commands, and run none")
    add_quiet_flag(parser)
    options = parser.parse_args(arguments)
    with commanded(quiet=options.quiet):
        code = show_pipeline(options.file) if options.dry_run else run_pipeline(options.file, quiet=options.quiet)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    run_command(main, interrupted="interrupted; the same command goes on from there")
