"""How every command ends: 0, or one line on stderr and exit code 2 for what the user can mend."""

import argparse
import dataclasses
import errno
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, Literal, NoReturn, get_args, get_origin

from shards.errors import AlignDistilError, OptionError, first_line

REFUSED_BY_THE_SYSTEM = frozenset({
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
})  # fmt: skip
"""Errors of the operating system about disks and folders, which no code can help."""


class OneLineErrors(argparse.ArgumentParser):
    """A parser that raises OptionError where argparse would print its whole usage too."""

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message} (--help lists all flags)")

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        found, unknown = super().parse_known_args(*args, **kwargs)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def flag(default: Any, text: str) -> Any:
    """A field of an options dataclass: its default, and what --help says of it. A list or dict is copied."""
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata={"help": text})
    return dataclasses.field(default=default, metadata={"help": text})


def require_choices(options: Any) -> None:
    """Raise OptionError where a field of Literal type holds another value; argparse asks only on the command line."""
    for field in dataclasses.fields(options):
        kinds = (field.type, *get_args(field.type))
        legal = [value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
        value = getattr(options, field.name)
        if legal and value is not None and value not in legal:
            raise OptionError(f"{field.name}: expected one of {', '.join(map(str, legal))}, got {value!r}")


def require_at_least(options: Any, least: int, names: Iterable[str]) -> None:
    """Raise OptionError where one of these fields holds a smaller number."""
    for name in names:
        if getattr(options, name) < least:
            raise OptionError(f"{name}: expected {least} or more, got {getattr(options, name)}")


def run_command(main: Callable[[], None], *, interrupted: str = "interrupted") -> None:
    """Run a command's main; an AlignDistilError becomes one line and exit code 2, any other error a traceback.

    What the operating system refuses (a full disk, a read-only folder, too many open files) is one line as well.

    interrupted: what is said after Ctrl-C, with exit code 130.
    """
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except AlignDistilError as error:
        _refuse(str(error))
    except OSError as error:
        if error.errno not in REFUSED_BY_THE_SYSTEM:
            raise
        where = error.filename or "a file"  # pyarrow does not say which
        _refuse(f"{where}: expected to be able to read and write, got {error.strerror or first_line(error)}")


def _refuse(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
