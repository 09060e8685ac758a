"""python -m precompute.build: three models and preference data -> a cache.

The plan is written first, then one shard after the other (each appears when it is whole), and the manifest last.
After a kill, the same command goes on where the build stopped.
"""

from collections.abc import Sequence

from transformers import HfArgumentParser

from precompute.build.build import build
from precompute.build.options import BuildOptions
from precompute.processes import Processes
from shards.cli.command import parse_dataclasses, run_command
from shards.progress import commanded


def main(arguments: Sequence[str] | None = None) -> None:
    (options,) = parse_dataclasses(HfArgumentParser, BuildOptions, "precompute.build", __doc__, arguments)
    with commanded(quiet=options.quiet):
        build(options)
        Processes.join().leave()


if __name__ == "__main__":
    run_command(main, interrupted="interrupted; finished shards stay, and the same command goes on from there")
