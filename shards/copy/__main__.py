"""python -m shards.copy SRC DST: copies a finished cache between folders, buckets and hub data set repositories.

SRC and DST are folders of this machine or URLs (s3://, gs://, az://, hf://datasets/). Each shard is checked against the
manifest on the way. The manifest is written last, so a copy that was interrupted is not taken for a cache; the same
command goes on with it.
"""

import argparse
from collections.abc import Sequence

from shards.cli.command import OneLineErrors, run_command
from shards.cli.flags.quiet_flag import add_quiet_flag
from shards.cli.text import counted
from shards.copy.copying import copy
from shards.copy.destination import open_store
from shards.errors import OptionError
from shards.progress import commanded
from shards.say import say, warn


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.jobs < 1:
        raise OptionError(f"jobs: expected 1 or more, got {options.jobs}")
    with commanded(quiet=options.quiet):
        report(options)


def report(options: argparse.Namespace) -> None:
    """Copy, and say what was copied."""
    done = copy(
        open_store(options.source),
        open_store(options.destination, private=not options.public),
        jobs=options.jobs,
        verify=options.verify,
        license=options.license,
        cache_dir=options.cache_dir,
    )
    for note in done.notes:
        warn(note)
    before = f", {done.present:,} were there" if done.present else ""
    checked = "content read again" if options.verify == "content" else "sizes checked"
    copied = f"{counted(done.shards, 'shard')} copied, {done.bytes / 1e6:,.1f} MB"
    say(f"{options.destination}: {copied}{before}; {checked}")


def _parser() -> argparse.ArgumentParser:
    parser = OneLineErrors(
        prog="python -m shards.copy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SRC", help="folder or URL of a finished cache")
    parser.add_argument("destination", metavar="DST", help="folder or URL to copy it to")
    parser.add_argument("--jobs", type=int, default=4, help="shards on their way at a time (default: 4)")
    parser.add_argument(
        "--verify",
        choices=("sizes", "content"),
        default="sizes",
        help="what is checked at DST before the manifest: sizes, by a listing, or content, by reading all again",
    )
    parser.add_argument("--cache_dir", help="folder for shards on their way; default: ~/.cache/aligndistil")
    parser.add_argument("--public", action="store_true", help="a hub repository that does not exist yet is made public")
    parser.add_argument("--license", help="licence in the card of a hub repository, such as apache-2.0")
    add_quiet_flag(parser)
    return parser


if __name__ == "__main__":
    run_command(main, interrupted="interrupted; the same command goes on from here")
