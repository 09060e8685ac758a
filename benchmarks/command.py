"""What the commands of all benchmarks share."""

import shlex
import sys
from collections.abc import Sequence
from typing import TypeVar

import datasets
import transformers
from transformers import HfArgumentParser

from shards.cli.command import parse_dataclasses

Options = TypeVar("Options")


def parse(
    kind: type[Options], module: str, description: str | None, arguments: Sequence[str] | None
) -> tuple[Options, str]:
    """The options of `python -m MODULE`, and the command line that gave them. Raises OptionError."""
    (options,) = parse_dataclasses(HfArgumentParser, kind, module, description, arguments)
    given = sys.argv[1:] if arguments is None else arguments
    return options, shlex.join(["python", "-m", module, *given])


def quiet() -> None:
    """Hide progress bars and hints of the libraries."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
