"""--quiet, the same in every command: warnings, errors and what the command is asked to print, and nothing else."""

import argparse
from dataclasses import dataclass
from typing import Any

from shards.cli.command import flag

QUIET_HELP = "show warnings, errors and what the command is asked to print only: no plan, notes, progress or summary"


@dataclass(kw_only=True)
class QuietFlag:
    """The option field of `shards.progress.commanded`."""

    quiet: bool = flag(False, QUIET_HELP)


def add_quiet_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help=QUIET_HELP)


def asked_level(args: Any) -> int | None:
    """The level that --log_level of transformers' TrainingArguments asks of this process; None if it was not given."""
    return None if args.log_level == "passive" else int(args.get_process_log_level())
