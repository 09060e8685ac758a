"""What the commands of all benchmarks share."""

import shlex
import sys
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import datasets
import transformers
from transformers import HfArgumentParser

from shards.command import OneLineErrors

Options = TypeVar("Options")


class _Parser(OneLineErrors, HfArgumentParser):
    pass


def parse(
    kind: type[Options], module: str, description: str | None, arguments: Sequence[str] | None
) -> tuple[Options, str]:
    """The options of `python -m MODULE`, and the command line that gave them. Raises OptionError."""
    parser = _Parser(cast(Any, kind), prog=f"python -m {module}", description=description)
    (options,) = parser.parse_args_into_dataclasses(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    return options, shlex.join(["python", "-m", module, *given])


def quiet() -> None:
    """No bars and hints of the libraries below."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
